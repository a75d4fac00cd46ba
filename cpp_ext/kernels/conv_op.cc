// The operators `Conv3x3` and `Conv1x1`: Y = act(conv(X, W) + bias + shift + residual), each place of X one
// of Y.
#include "conv1x1.h"
#include "conv3x3.h"
#include "linear_node.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

struct Window3x3 {
  static constexpr const char* kName = "Conv3x3";
  static constexpr std::size_t kTaps = 9;
  static constexpr auto run = kernels::conv3x3_f32;
};

struct Window1x1 {
  static constexpr const char* kName = "Conv1x1";
  static constexpr std::size_t kTaps = 1;
  static constexpr auto run = kernels::conv1x1_f32;
};

template <class Window>
class Conv {
 public:
  static constexpr const char* kName = Window::kName;
  static constexpr Input kInputs[] = {{Element::f32},
                                      {Element::f32},
                                      {Element::f32, Presence::optional},
                                      {Element::f32, Presence::optional},
                                      {Element::f32, Presence::optional}};
  static constexpr int kResidual = 4;

  explicit Conv(const Setup& setup)
      : inputs_(setup.size("in_channels")),
        outputs_(setup.size("out_channels")),
        activation_(activation_named(setup.text("activation"))),
        weights_(setup, {1, "W", round_up(outputs_, kPanel) * inputs_ * Window::kTaps, sizeof(float), true}),
        bias_(setup, {2, "bias", outputs_, sizeof(float)}) {}

  void run(Run& run) const {
    const Tensor x = run.input(0), shift = run.input(3), residual = run.input(4);
    if (x.shape.rank != 4 || x.shape.sizes[1] != static_cast<std::int64_t>(inputs_)) {
      throw Failure("X is " + x.shape.text() + ", expected [N, " + std::to_string(inputs_) + ", H, W]");
    }
    Shape y = x.shape;
    y.sizes[1] = static_cast<std::int64_t>(outputs_);
    const auto size = [&x](std::size_t axis) { return static_cast<std::size_t>(x.shape.sizes[axis]); };
    const kernels::ConvShape shape{size(0), inputs_, outputs_, size(2), size(3)};
    if (shift.data != nullptr) check(shift, shape.batch * outputs_, "shift", y);
    if (residual.data != nullptr) check(residual, y.count(), "residual", y);
    float* to = run.output(y);
    if (y.count() == 0) return;
    Window::run(shape, x.floats(), weights_.get<float>(run),
                {bias_.get<float>(run), shift.floats(), residual.floats(), activation_}, to, run.parallel());
  }

 private:
  static void check(const Tensor& added, std::size_t count, const char* name, const Shape& y) {
    if (added.shape.count() == count) return;
    throw Failure(std::string("the ") + name + " is " + added.shape.text() + ", Y is " + y.text());
  }

  std::size_t inputs_, outputs_;
  kernels::Activation activation_;
  Weights weights_, bias_;
};

}  // namespace

const CustomOp* conv3x3_op() {
  return custom_op<Conv<Window3x3>>();
}

const CustomOp* conv1x1_op() {
  return custom_op<Conv<Window1x1>>();
}

}  // namespace vlrt::ort
