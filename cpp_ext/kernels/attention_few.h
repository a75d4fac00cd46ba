// Attention of a few queries over a long memory, which is read once and where it lies.
#pragma once

#include <cstddef>

#include "attention.h"

namespace vlrt::kernels {

// Whether keys lie lane by lane, and values lane by lane or token by token, so that vectors can be loaded
// from them.
bool reads_in_place(const Attended& attended);

// Floats of scratch that `attend_few_avx512` needs.
std::size_t few_scratch(const AttentionShape& shape);

// All queries of one head.
void attend_few_avx512(const AttentionShape& shape, const Attended& attended, std::size_t batch,
                       std::size_t head, float* scratch);

}  // namespace vlrt::kernels
