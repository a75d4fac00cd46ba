// What the processor, and the system on it, can do for the kernels.
#pragma once

namespace vlrt::kernels {

enum class Level : int {
  none = 0,         // the kernels cannot run here
  avx512 = 1,       // AVX-512 F, BW, DQ, VL and FMA
  avx512_vnni = 2,  // and products of bytes
};

// Asks the processor once.
Level level();

}  // namespace vlrt::kernels
