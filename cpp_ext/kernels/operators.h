// The operators of the domain `vlrt`, one per file `*_op.cc`.
#pragma once

#include "ort_abi.h"

namespace vlrt::ort {

const CustomOp* linear_op();
const CustomOp* linear_int8_op();
const CustomOp* attention_op();
const CustomOp* cached_attention_op();
const CustomOp* conv1x1_op();
const CustomOp* conv3x3_op();
const CustomOp* gated_gelu_op();
const CustomOp* group_norm_op();
const CustomOp* embed_int8_op();
const CustomOp* layer_norm_op();

}  // namespace vlrt::ort
