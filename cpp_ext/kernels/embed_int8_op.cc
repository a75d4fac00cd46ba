// The operator `EmbedInt8`: rows of an embedding whose weights are those of a product: the columns of W that
// ids name.
#include "linear_int8_columns.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class EmbedInt8 {
 public:
  static constexpr const char* kName = "EmbedInt8";
  static constexpr Input kInputs[] = {{Element::i64}, {Element::i8}, {Element::f32}};

  explicit EmbedInt8(const Setup& setup)
      : inner_(setup.size("inner")),
        columns_(setup.size("columns")),
        weights_(setup, {1, "W", (columns_ + 15) / 16 * 16 * ((inner_ + 3) / 4 * 4), 1}),
        scales_(setup, {2, "scales", columns_, sizeof(float)}) {}

  void run(Run& run) const {
    const Tensor ids = run.input(0);
    Shape shape = ids.shape;
    if (shape.rank == Shape::kMostAxes) throw Failure("ids have 8 axes, expected 7 at most");
    shape.sizes[shape.rank++] = static_cast<std::int64_t>(inner_);
    float* to = run.output(shape);
    const auto* id = static_cast<const std::int64_t*>(ids.data);
    for (std::size_t at = 0; at < ids.shape.count(); ++at, to += inner_) {
      const std::size_t column = column_of(id[at]);
      kernels::unpack_column(weights_.get<std::int8_t>(run), inner_, column, scales_.get<float>(run)[column],
                             to);
    }
  }

 private:
  // As ONNX's Gather: from -columns on, the negative ones counted from the end.
  std::size_t column_of(std::int64_t id) const {
    const auto columns = static_cast<std::int64_t>(columns_);
    if (id < -columns || id >= columns) {
      throw Failure("id " + std::to_string(id) + " is none of " + std::to_string(columns));
    }
    return static_cast<std::size_t>(id < 0 ? id + columns : id);
  }

  std::size_t inner_, columns_;
  Weights weights_, scales_;
};

}  // namespace

const CustomOp* embed_int8_op() {
  return custom_op<EmbedInt8>();
}

}  // namespace vlrt::ort
