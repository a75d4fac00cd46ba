// ONNX Runtime's C interface, as far as custom operators need it: a table of functions that only ever grows,
// so that an entry is known by its index, and the structure by which an operator describes itself.
//
// Facts out of `onnxruntime_c_api.h`, version 21 of the interface (onnxruntime 1.21, the lowest that is
// supported).
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlrt::ort {

inline constexpr std::uint32_t kVersion = 21;

struct Api;
struct Domain;
struct Info;     // of a node, while its kernel is made
struct Context;  // of one run of a kernel
struct SessionOptions;
struct Status;
struct TensorInfo;
struct Value;

enum class Code : int { fail = 1, invalid_argument = 2 };
enum class Element : int { f32 = 1, i8 = 3, i32 = 6, i64 = 7 };
enum class Presence : int { required = 0, optional = 1 };

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*get_version)();
};

// The function at an index of the table.
template <std::size_t Index, class Signature>
struct Entry;

template <std::size_t Index, class Result, class... Arguments>
struct Entry<Index, Result(Arguments...)> {
  static Result call(const Api* api, Arguments... arguments) {
    using Function = Result (*)(Arguments...);
    return reinterpret_cast<const Function*>(api)[Index](arguments...);
  }
};

using CreateStatus = Entry<0, Status*(Code, const char*)>;
using GetErrorMessage = Entry<2, const char*(const Status*)>;
using CreateCustomOpDomain = Entry<26, Status*(const char*, Domain**)>;
using CustomOpDomainAdd = Entry<27, Status*(Domain*, const struct CustomOp*)>;
using AddCustomOpDomain = Entry<28, Status*(SessionOptions*, Domain*)>;
using GetTensorMutableData = Entry<51, Status*(Value*, void**)>;
using GetTensorElementType = Entry<60, Status*(const TensorInfo*, Element*)>;
using GetDimensionsCount = Entry<61, Status*(const TensorInfo*, std::size_t*)>;
using GetDimensions = Entry<62, Status*(const TensorInfo*, std::int64_t*, std::size_t)>;
using GetTensorTypeAndShape = Entry<65, Status*(const Value*, TensorInfo**)>;
using GetFloat = Entry<85, Status*(const Info*, const char*, float*)>;
using GetInteger = Entry<86, Status*(const Info*, const char*, std::int64_t*)>;
using GetString = Entry<87, Status*(const Info*, const char*, char*, std::size_t*)>;
using GetInput = Entry<90, Status*(const Context*, std::size_t, const Value**)>;
using GetOutput = Entry<91, Status*(Context*, std::size_t, const std::int64_t*, std::size_t, Value**)>;
using ReleaseStatus = Entry<93, void(Status*)>;
using ReleaseTensorInfo = Entry<99, void(TensorInfo*)>;
using GetConstantInput = Entry<249, Status*(const Info*, std::size_t, int*, const Value**)>;
using ParallelFor =
    Entry<274, Status*(const Context*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*)>;

// Functions that are null are those that onnxruntime does not ask for, or takes as "not so".
struct CustomOp {
  std::uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const Info*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_provider)(const CustomOp*);
  Element (*get_input_type)(const CustomOp*, std::size_t);
  std::size_t (*get_input_count)(const CustomOp*);
  Element (*get_output_type)(const CustomOp*, std::size_t);
  std::size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void*, Context*);
  void (*destroy)(void*);
  Presence (*get_input_presence)(const CustomOp*, std::size_t);
  Presence (*get_output_presence)(const CustomOp*, std::size_t);
  int (*get_input_memory)(const CustomOp*, std::size_t);
  int (*get_variadic_input_least)(const CustomOp*);
  int (*get_variadic_input_alike)(const CustomOp*);
  int (*get_variadic_output_least)(const CustomOp*);
  int (*get_variadic_output_alike)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const Info*, void**);
  Status* (*compute_v2)(void*, Context*);
  Status* (*infer_shape)(const CustomOp*, void*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  std::size_t (*get_may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  std::size_t (*get_alias)(int**, int**);
  void (*release_alias)(int*, int*);
};

}  // namespace vlrt::ort
