#include <immintrin.h>

#include <algorithm>

#include "activations_avx512.h"
#include "conv1x1.h"
#include "conv_products_avx512.h"
#include "scratch.h"

namespace vlrt::kernels {
namespace {

using std::size_t;

constexpr size_t kPlaces = 16;  // of a register tile
constexpr size_t kBlocksBytes = size_t{384}
                                << 10;  // of x in a task: stays in a core's own cache beside the filters
constexpr size_t kMostBlocks = 16;      // for planes of few channels

struct Convolution {
  const ConvShape& shape;
  const float *x, *packed;
  const ConvEpilogue& epilogue;
  float* y;
  size_t blocks, parts;  // blocks of places in a part of a plane, parts of a plane

  size_t groups() const { return (shape.outputs + kGroup - 1) / kGroup; }
};

__mmask16 lowest(size_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << count) - 1U);
}

// Places [from, from + count) of all channels of a picture to [blocks][inputs][16].
void gather(const Convolution& conv, size_t picture, size_t from, size_t count, float* blocks) {
  const float* x = conv.x + picture * conv.shape.inputs * conv.shape.plane() + from;
  for (size_t c = 0; c < conv.shape.inputs; ++c, x += conv.shape.plane()) {
    for (size_t at = 0; at < count; at += kPlaces) {
      const __m512 places = _mm512_maskz_loadu_ps(lowest(count - at), x + at);
      _mm512_store_ps(blocks + at * conv.shape.inputs + c * kPlaces, places);
    }
  }
}

// Sums of a group of outputs at up to 16 places of a picture to y.
void finish(const Convolution& conv, size_t picture, size_t group, size_t from, size_t count,
            const __m512 (&sums)[kGroup]) {
  const __mmask16 mask = lowest(count);
  const size_t outputs = std::min(kGroup, conv.shape.outputs - group * kGroup);
  const ConvEpilogue& epilogue = conv.epilogue;
  for (size_t row = 0; row < outputs; ++row) {
    const size_t output = group * kGroup + row, plane = picture * conv.shape.outputs + output;
    const size_t at = plane * conv.shape.plane() + from;
    const float bias = epilogue.bias ? epilogue.bias[output] : 0.0F;
    const float shift = epilogue.shift ? bias + epilogue.shift[plane] : bias;
    __m512 sum = _mm512_add_ps(sums[row], _mm512_set1_ps(shift));
    if (epilogue.residual) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, epilogue.residual + at));
    _mm512_mask_storeu_ps(conv.y + at, mask, activate_ps(epilogue.activation, sum));
  }
}

// Groups [first, end) of outputs at one part of a picture.
void convolve(const Convolution& conv, size_t picture, size_t part, size_t first, size_t end) {
  thread_local Scratch scratch;
  const size_t inputs = conv.shape.inputs, from = part * conv.blocks * kPlaces;
  const size_t count = std::min(conv.blocks * kPlaces, conv.shape.plane() - from);
  float* blocks = scratch.room(conv.blocks * kPlaces * inputs);
  gather(conv, picture, from, count, blocks);
  for (size_t group = first; group < end; ++group) {
    const float* filters = conv.packed + group * inputs * kGroup;
    for (size_t at = 0; at < count; at += kPlaces) {
      // The filters of the next group come while those of this one meet the first block.
      const float* next = at == 0 && group + 1 < end ? filters + inputs * kGroup : filters;
      __m512 sums[kGroup];
      sum_products(inputs, filters, blocks + at * inputs, next, sums);
      finish(conv, picture, group, from + at, std::min(kPlaces, count - at), sums);
    }
  }
}

}  // namespace

void conv1x1_f32(const ConvShape& shape, const float* x, const float* packed, const ConvEpilogue& epilogue,
                 float* y, const Parallel& parallel) {
  Convolution conv{shape, x, packed, epilogue, y, 0, 0};
  const size_t all = (shape.plane() + kPlaces - 1) / kPlaces;
  const size_t fit = kBlocksBytes / (shape.inputs * kPlaces * sizeof(float));
  conv.blocks = std::clamp(fit, size_t{1}, std::min(kMostBlocks, all));
  conv.parts = (all + conv.blocks - 1) / conv.blocks;
  // Small pictures make too few tasks of whole planes; x is gathered again for each range of outputs then.
  const size_t wanted = 4 * parallel.threads(), planes = shape.batch * conv.parts;
  const size_t ranges = std::clamp((wanted + planes - 1) / planes, size_t{1}, conv.groups());
  parallel(planes * ranges, [&conv, ranges](size_t task) {
    const size_t plane = task / ranges, range = task % ranges;
    convolve(conv, plane / conv.parts, plane % conv.parts, conv.groups() * range / ranges,
             conv.groups() * (range + 1) / ranges);
  });
}

}  // namespace vlrt::kernels
