// The operator `LayerNorm`: Y = normalised rows of X * scale + bias.
#include "layer_norm.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class LayerNorm {
 public:
  static constexpr const char* kName = "LayerNorm";
  static constexpr Input kInputs[] = {{Element::f32}, {Element::f32}, {Element::f32}};
  static constexpr int kResidual = 0;

  explicit LayerNorm(const Setup& setup)
      : width_(setup.size("width")),
        epsilon_(setup.number("epsilon")),
        scale_(setup, {1, "scale", width_, sizeof(float)}),
        bias_(setup, {2, "bias", width_, sizeof(float)}) {}

  void run(Run& run) const {
    const Tensor x = run.input(0);
    if (x.shape.rank == 0 || x.shape.last() != static_cast<std::int64_t>(width_)) {
      throw Failure("X is " + x.shape.text() + ", expected [..., " + std::to_string(width_) + "]");
    }
    float* to = run.output(x.shape);
    kernels::layer_norm_f32(x.shape.count() / width_, width_, x.floats(),
                            {scale_.get<float>(run), bias_.get<float>(run), epsilon_}, to, run.parallel());
  }

 private:
  std::size_t width_;
  float epsilon_;
  Weights scale_, bias_;
};

}  // namespace

const CustomOp* layer_norm_op() {
  return custom_op<LayerNorm>();
}

}  // namespace vlrt::ort
