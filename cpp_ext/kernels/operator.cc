#include "operator.h"

#include <cstring>
#include <thread>

namespace vlrt::ort {
namespace {

// Throws what a status says.
void check(const Api* api, Status* status) {
  if (status == nullptr) return;
  const std::string message = GetErrorMessage::call(api, status);
  ReleaseStatus::call(api, status);
  throw Failure(message);
}

Shape shape_of(const Api* api, const Value* value) {
  TensorInfo* found = nullptr;
  check(api, GetTensorTypeAndShape::call(api, value, &found));
  const auto release = [api](TensorInfo* info) { ReleaseTensorInfo::call(api, info); };
  const std::unique_ptr<TensorInfo, decltype(release)> info(found, release);
  Shape shape;
  check(api, GetDimensionsCount::call(api, info.get(), &shape.rank));
  if (shape.rank > Shape::kMostAxes) throw Failure("an input has more than 8 axes");
  check(api, GetDimensions::call(api, info.get(), shape.sizes.data(), shape.rank));
  return shape;
}

Tensor tensor_of(const Api* api, const Value* value) {
  if (value == nullptr) return {};
  void* data = nullptr;
  // The interface has a reading form from version 23 on only.
  check(api, GetTensorMutableData::call(api, const_cast<Value*>(value), &data));
  return {data, shape_of(api, value)};
}

}  // namespace

std::size_t Shape::count() const {
  std::size_t product = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) product *= static_cast<std::size_t>(sizes[axis]);
  return product;
}

std::string Shape::text() const {
  std::string out = "[";
  for (std::size_t axis = 0; axis < rank; ++axis) out += (axis ? ", " : "") + std::to_string(sizes[axis]);
  return out + "]";
}

float Setup::number(const char* name) const {
  float value = 0;
  check(api_, GetFloat::call(api_, info_, name, &value));
  return value;
}

std::string Setup::text(const char* name) const {
  std::size_t size = 0;  // with the zero at the end
  check(api_, GetString::call(api_, info_, name, nullptr, &size));
  std::string value(size, '\0');
  check(api_, GetString::call(api_, info_, name, value.data(), &size));
  value.resize(std::strlen(value.c_str()));
  return value;
}

std::size_t Setup::size(const char* name) const {
  std::int64_t value = 0;
  check(api_, GetInteger::call(api_, info_, name, &value));
  // Products of three such sizes still fit where addresses have 64 bits.
  if (value < 1 || value > (std::int64_t{1} << 24)) {
    throw Failure(std::string("`") + name + "` is " + std::to_string(value) + ", expected 1 to 16777216");
  }
  return static_cast<std::size_t>(value);
}

Tensor Setup::constant(std::size_t index) const {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api_, GetConstantInput::call(api_, info_, index, &is_constant, &value));
  return is_constant ? tensor_of(api_, value) : Tensor{};
}

Tensor Run::input(std::size_t index) const {
  const Value* value = nullptr;
  check(api_, GetInput::call(api_, context_, index, &value));
  return tensor_of(api_, value);
}

float* Run::output(const Shape& shape, std::size_t index) {
  Value* value = nullptr;
  check(api_, GetOutput::call(api_, context_, index, shape.sizes.data(), shape.rank, &value));
  void* data = nullptr;
  check(api_, GetTensorMutableData::call(api_, value, &data));
  return static_cast<float*>(data);
}

kernels::Parallel Run::parallel() {
  // The pool does not say how many threads it has.
  static const std::size_t threads = std::thread::hardware_concurrency();
  return {run_on_pool, this, threads};
}

void Run::run_on_pool(void* self, std::size_t count, kernels::Parallel::Body body, void* data) {
  const auto& run = *static_cast<const Run*>(self);
  // 0: no grouping; the pool's threads take one index after the other.
  check(run.api_, ParallelFor::call(run.api_, run.context_, body, count, 0, data));
}

Weights::Weights(const Setup& setup, const Wanted& wanted) : wanted_(wanted) {
  const Tensor found = setup.constant(wanted.index);
  if (found.data == nullptr) return;
  check(found);
  data_ = found.data;
  if (lies_well(data_)) return;
  const std::size_t bytes = wanted.count * wanted.element_size;
  copy_.reset(::operator new(bytes, std::align_val_t{kAlignment}));
  std::memcpy(copy_.get(), data_, bytes);
  data_ = copy_.get();
}

const void* Weights::fetch(const Run& run) const {
  const Tensor found = run.input(wanted_.index);
  if (found.data == nullptr) return nullptr;
  check(found);
  if (!lies_well(found.data)) {
    throw Failure(std::string("`") + wanted_.name + "` is no initializer and not aligned to 64 bytes");
  }
  return found.data;
}

void Weights::check(const Tensor& tensor) const {
  if (tensor.shape.count() == wanted_.count) return;
  throw Failure(std::string("`") + wanted_.name + "` is " + tensor.shape.text() + ", expected " +
                std::to_string(wanted_.count) + " elements");
}

bool Weights::lies_well(const void* data) const {
  return !wanted_.aligned || reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0;
}

}  // namespace vlrt::ort
