// The operators' handling of nodes and tensors, for the sanitizers' eyes; values are tested from Python.
#ifdef VLRT_HAS_KERNELS
#include <memory>

#include "check.h"
#include "cpu.h"
#include "fake_ort.h"
#include "operators.h"
#include "parallel.h"

namespace vlrt::test {
namespace {

using ort::Value;

template <class T>
Value tensor(std::vector<std::int64_t> shape, const std::vector<T>& values, std::size_t skipped = 0) {
  Value value{std::move(shape), std::vector<unsigned char>(skipped + values.size() * sizeof(T)), skipped};
  std::memcpy(value.bytes.data() + skipped, values.data(), values.size() * sizeof(T));
  return value;
}

std::vector<float> floats(const Value& value) {
  std::vector<float> out(value.bytes.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), value.bytes.data(), value.bytes.size());
  return out;
}

std::string message_of(ort::Status* status) {
  const std::unique_ptr<ort::Status> owned(status);
  return owned == nullptr ? "" : owned->message;
}

// A kernel made for a node; what was wrong with the node, or with the last run, is in `error`.
class Node {
 public:
  Node(const ort::CustomOp* op, const ort::Info& info) : op_(op) {
    error = message_of(op->create_kernel_v2(op, ort::fake::api(), &info, &kernel_));
  }
  ~Node() {
    if (kernel_ != nullptr) op_->destroy(kernel_);
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  std::vector<float> run(const std::vector<const Value*>& inputs) {
    ort::Context context{inputs, {}};
    error = message_of(op_->compute_v2(kernel_, &context));
    return floats(context.output);
  }

  std::string error;

 private:
  const ort::CustomOp* op_;
  void* kernel_ = nullptr;
};

ort::Info linear_info(std::int64_t inner, std::int64_t columns) {
  return {{}, {{"inner", inner}, {"columns", columns}}, {{"activation", "none"}}, {}};
}

// The unit matrix of three columns, packed; in front of it lie bytes that make it unaligned.
Value unit_matrix(std::size_t skipped) {
  std::vector<float> packed(3 * 16);
  for (std::size_t i = 0; i < 3; ++i) packed[i * 16 + i] = 1;
  return tensor<float>({1, 3, 16}, packed, skipped);
}

const bool kCanRun = kernels::level() != kernels::Level::none;

}  // namespace

TEST(parallel_runs_each_index_once) {
  for (std::size_t count = 0; count < 5; ++count) {
    std::vector<int> seen(count);
    kernels::serial()(count, [&seen](std::size_t index) { ++seen[index]; });
    CHECK(seen == std::vector<int>(count, 1));
  }
}

TEST(linear_adds_bias_and_residual_or_goes_without) {
  if (!kCanRun) return;
  const Value bias = tensor<float>({3}, {1, 2, 3}), x = tensor<float>({2, 3}, {1, 2, 3, 4, 5, 6});
  for (const std::size_t skipped : {0, 4, 20}) {  // initializers that lie unaligned are copied
    const Value weights = unit_matrix(skipped);
    ort::Info info = linear_info(3, 3);
    info.constants = {{1, &weights}};
    Node node(ort::linear_op(), info);
    CHECK((node.run({&x, &weights}) == std::vector<float>{1, 2, 3, 4, 5, 6}));
    CHECK((node.run({&x, &weights, &bias}) == std::vector<float>{2, 4, 6, 5, 7, 9}));
    CHECK((node.run({&x, &weights, nullptr, &x}) == std::vector<float>{2, 4, 6, 8, 10, 12}));
    CHECK((node.run({&x, &weights, &bias, &x}) == std::vector<float>{3, 6, 9, 9, 12, 15}));
  }
}

TEST(linear_refuses_what_does_not_fit) {
  const Value weights = unit_matrix(0), x = tensor<float>({2, 2}, {1, 2, 3, 4});
  CHECK(Node(ort::linear_op(), {}).error == "Linear: no such attribute");
  CHECK(Node(ort::linear_op(), linear_info(0, 3)).error == "Linear: `inner` is 0, expected 1 to 16777216");
  ort::Info info = linear_info(4, 3);
  info.constants = {{1, &weights}};
  CHECK(Node(ort::linear_op(), info).error == "Linear: `W` is [1, 3, 16], expected 64 elements");
  Node node(ort::linear_op(), linear_info(3, 3));
  node.run({&x, &weights});
  CHECK(node.error == "Linear: X is [2, 2], expected [..., 3]");
}

TEST(weights_that_are_no_initializer_are_looked_at_in_every_run) {
  if (!kCanRun) return;
  Node node(ort::linear_op(), linear_info(3, 3));
  const Value x = tensor<float>({1, 3}, {1, 2, 3}), short_weights = tensor<float>({4}, {1, 2, 3, 4});
  node.run({&x, &short_weights});
  CHECK(node.error == "Linear: `W` is [4], expected 48 elements");
  Value weights = unit_matrix(0);
  weights.bytes.insert(weights.bytes.begin(), 128, 0);
  weights.skipped = 68 - reinterpret_cast<std::uintptr_t>(weights.bytes.data()) % 64;
  node.run({&x, &weights});
  CHECK(node.error == "Linear: `W` is no initializer and not aligned to 64 bytes");
}

TEST(linear_int8_multiplies_bytes) {
  if (kernels::level() != kernels::Level::avx512_vnni) return;
  std::vector<std::int8_t> packed(16 * 4);
  for (std::size_t i = 0; i < 3; ++i) packed[i * 4 + i] = 100;
  const Value weights = tensor({1, 1, 16, 4}, packed), scales = tensor<float>({3}, {0.01f, 0.01f, 0.01f}),
              sums = tensor<std::int32_t>({3}, {100, 100, 100}), x = tensor<float>({1, 3}, {0, 51, 255});
  ort::Info info = linear_info(3, 3);
  info.constants = {{1, &weights}, {2, &scales}, {3, &sums}};
  const std::vector<float> y = Node(ort::linear_int8_op(), info).run({&x, &weights, &scales, &sums});
  CHECK(y.size() == 3 && y[0] == 0 && near(y[1], 51, 1e-3) && near(y[2], 255, 1e-3));
}

TEST(attention_reads_layouts_and_masks_within_their_bounds) {
  if (!kCanRun) return;
  const Value q = tensor<float>({1, 2, 3, 2}, std::vector<float>(12, 1)),
              mask = tensor<float>({3}, {0, 0, 0});
  const Value flat = tensor<float>({1, 3, 4}, std::vector<float>(12, 2));
  for (const char* layout : {"bhtd", "bthd"}) {
    ort::Info info{{{"scale", 0.5f}}, {{"heads", 2}}, {}, {}};
    for (const char* side : {"key_layout", "value_layout", "output_layout"}) info.texts[side] = "bt(hd)";
    info.texts["query_layout"] = layout;
    Node node(ort::attention_op(), info);
    const std::vector<float> y = node.run({&q, &flat, &flat, &mask});
    // As `bthd` the queries have 3 heads, and the node says 2.
    CHECK(node.error == (layout[1] == 'h' ? "" : "Attention: 3 heads of Q, expected 2"));
    for (const float value : y) CHECK(near(value, 2, 1e-6));
  }
}

}  // namespace vlrt::test
#endif
