// As much of ONNX Runtime as an operator sees: nodes with attributes and initializers, tensors in memory of
// exactly their size, so that the sanitizers see every step beyond them.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace vlrt::ort {

struct Status {
  std::string message;
};

struct Value {
  std::vector<std::int64_t> shape;
  std::vector<unsigned char> bytes;
  std::size_t skipped = 0;  // bytes before the first element, so that it may lie unaligned
};

struct TensorInfo {
  const Value* value;
};

struct Info {
  std::map<std::string, float> numbers;
  std::map<std::string, std::int64_t> integers;
  std::map<std::string, std::string> texts;
  std::map<std::size_t, const Value*> constants;
};

struct Context {
  std::vector<const Value*> inputs;
  Value output;
};

namespace fake {

inline Status* status(const char* message) {
  return new Status{message};
}

template <class Map, class Out>
Status* look_up(const Map& map, const char* name, Out* out) {
  const auto found = map.find(name);
  if (found == map.end()) return status("no such attribute");
  *out = found->second;
  return nullptr;
}

inline Status* text(const Info* info, const char* name, char* out, std::size_t* size) {
  std::string value;
  if (Status* failed = look_up(info->texts, name, &value)) return failed;
  if (out != nullptr) std::memcpy(out, value.c_str(), value.size() + 1);
  *size = value.size() + 1;
  return nullptr;
}

inline Status* output(Context* context, std::size_t, const std::int64_t* shape, std::size_t rank,
                      Value** out) {
  std::size_t count = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) count *= static_cast<std::size_t>(shape[axis]);
  context->output = {{shape, shape + rank}, std::vector<unsigned char>(count * sizeof(float)), 0};
  *out = &context->output;
  return nullptr;
}

// The table, with the entries that operators call.
inline const Api* api() {
  static const void* table[275] = {};
  const auto set = [](std::size_t index, auto function) {
    table[index] = reinterpret_cast<const void*>(function);
  };
  set(0, +[](Code, const char* message) { return status(message); });
  set(2, +[](const Status* failed) { return failed->message.c_str(); });
  set(
      51, +[](Value* value, void** out) -> Status* {
        return *out = value->bytes.data() + value->skipped, nullptr;
      });
  set(
      61, +[](const TensorInfo* i, std::size_t* out) -> Status* {
        return *out = i->value->shape.size(), nullptr;
      });
  set(
      62, +[](const TensorInfo* info, std::int64_t* out, std::size_t count) -> Status* {
        for (std::size_t axis = 0; axis < count; ++axis) out[axis] = info->value->shape[axis];
        return nullptr;
      });
  set(
      65,
      +[](const Value* value, TensorInfo** out) -> Status* { return *out = new TensorInfo{value}, nullptr; });
  set(85, +[](const Info* info, const char* name, float* out) { return look_up(info->numbers, name, out); });
  set(
      86, +[](const Info* info, const char* name, std::int64_t* out) {
        return look_up(info->integers, name, out);
      });
  set(87, text);
  set(
      90, +[](const Context* context, std::size_t index, const Value** out) -> Status* {
        return *out = index < context->inputs.size() ? context->inputs[index] : nullptr, nullptr;
      });
  set(91, output);
  set(93, +[](Status* failed) { delete failed; });
  set(99, +[](TensorInfo* info) { delete info; });
  set(
      249, +[](const Info* info, std::size_t index, int* is_constant, const Value** out) -> Status* {
        const auto found = info->constants.find(index);
        *is_constant = found != info->constants.end();
        *out = *is_constant ? found->second : nullptr;
        return nullptr;
      });
  set(
      274,
      +[](const Context*, void (*body)(void*, std::size_t), std::size_t count, std::size_t,
          void* data) -> Status* {
        for (std::size_t index = count; index > 0; --index) body(data, index - 1);
        return nullptr;
      });
  return reinterpret_cast<const Api*>(table);
}

}  // namespace fake
}  // namespace vlrt::ort
