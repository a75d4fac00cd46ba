// The operator `GroupNorm`: Y = act(normalised groups of channels of X * scale + bias).
#include "group_norm.h"
#include "linear_node.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class GroupNorm {
 public:
  static constexpr const char* kName = "GroupNorm";
  static constexpr Input kInputs[] = {{Element::f32}, {Element::f32}, {Element::f32}};
  static constexpr int kResidual = 0;

  explicit GroupNorm(const Setup& setup)
      : groups_(setup.size("groups")),
        channels_(setup.size("channels")),
        epsilon_(setup.number("epsilon")),
        activation_(activation_named(setup.text("activation"))),
        scale_(setup, {1, "scale", channels_, sizeof(float)}),
        bias_(setup, {2, "bias", channels_, sizeof(float)}) {
    if (channels_ % groups_ != 0) {
      throw Failure(std::to_string(channels_) + " channels do not make " + std::to_string(groups_) +
                    " groups");
    }
  }

  void run(Run& run) const {
    const Tensor x = run.input(0);
    if (x.shape.rank < 2 || x.shape.sizes[1] != static_cast<std::int64_t>(channels_)) {
      throw Failure("X is " + x.shape.text() + ", expected [N, " + std::to_string(channels_) + ", ...]");
    }
    float* to = run.output(x.shape);
    const std::size_t count = x.shape.count();
    if (count == 0) return;
    const auto batch = static_cast<std::size_t>(x.shape.sizes[0]);
    kernels::group_norm_f32({batch, channels_, count / batch / channels_, groups_}, x.floats(),
                            {scale_.get<float>(run), bias_.get<float>(run), epsilon_}, activation_, to,
                            run.parallel());
  }

 private:
  std::size_t groups_, channels_;
  float epsilon_;
  kernels::Activation activation_;
  Weights scale_, bias_;
};

}  // namespace

const CustomOp* group_norm_op() {
  return custom_op<GroupNorm>();
}

}  // namespace vlrt::ort
