// The operator `GatedGelu`: Y = A gelu(B) for X = [A, B] along the last axis.
#include "gated_gelu.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class GatedGelu {
 public:
  static constexpr const char* kName = "GatedGelu";
  static constexpr Input kInputs[] = {{Element::f32}};

  explicit GatedGelu(const Setup&) {}

  void run(Run& run) const {
    const Tensor x = run.input(0);
    if (x.shape.rank == 0 || x.shape.last() % 2 != 0)
      throw Failure("X is " + x.shape.text() + ", expected [..., 2 n]");
    Shape y = x.shape;
    y.sizes[y.rank - 1] /= 2;
    float* to = run.output(y);
    if (y.count() == 0) return;
    const auto columns = static_cast<std::size_t>(y.last());
    kernels::gated_gelu_f32(y.count() / columns, columns, x.floats(), to, run.parallel());
  }
};

}  // namespace

const CustomOp* gated_gelu_op() {
  return custom_op<GatedGelu>();
}

}  // namespace vlrt::ort
