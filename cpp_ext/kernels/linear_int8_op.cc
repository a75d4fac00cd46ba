// The operator `LinearInt8`: as `Linear`, with weights of eight bits and X quantised row by row as it comes.
#include "cpu.h"
#include "linear_int8.h"
#include "linear_node.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

// Rows of W that are packed together: as many bytes as one product of the processor takes.
constexpr std::size_t kQuad = 4;

class LinearInt8 {
 public:
  static constexpr const char* kName = "LinearInt8";
  static constexpr Input kInputs[] = {{Element::f32},
                                      {Element::i8},
                                      {Element::f32},
                                      {Element::i32},
                                      {Element::f32, Presence::optional},
                                      {Element::f32, Presence::optional}};
  static constexpr int kResidual = 5;

  explicit LinearInt8(const Setup& setup)
      : node_(setup, 4),
        weights_(setup,
                 {1, "W", round_up(node_.columns(), kPanel) * round_up(node_.inner(), kQuad), 1, true}),
        scales_(setup, {2, "scales", node_.columns(), sizeof(float)}),
        sums_(setup, {3, "sums", node_.columns(), sizeof(std::int32_t)}) {
    if (kernels::level() < kernels::Level::avx512_vnni) throw Failure("this processor has no AVX-512 VNNI");
  }

  void run(Run& run) const {
    const LinearNode::Call call = node_.prepare(run);
    if (call.shape.rows == 0) return;
    kernels::linear_int8(call.shape, call.x, weights_.get<std::int8_t>(run), scales_.get<float>(run),
                         sums_.get<std::int32_t>(run), call.epilogue, call.y, run.parallel());
  }

 private:
  LinearNode node_;
  Weights weights_, scales_, sums_;
};

}  // namespace

const CustomOp* linear_int8_op() {
  return custom_op<LinearInt8>();
}

}  // namespace vlrt::ort
