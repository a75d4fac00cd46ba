// What an operator is made of: a class `Kernel` with
//   static constexpr const char* kName;
//   static constexpr Input kInputs[];               one output of float32 follows
//   static constexpr std::size_t kOutputs;          if at all: or as many
//   static constexpr int kResidual;                 if at all: the input whose place the output may take
//   explicit Kernel(const Setup&);                  reads the attributes and the weights
//   void run(Run&) const;                           one run; on several threads at once where sessions are
// Either throws `Failure`, which reaches the user as one line.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "ort_abi.h"
#include "parallel.h"

namespace vlrt::ort {

inline constexpr std::size_t kAlignment = 64;

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Input {
  Element element;
  Presence presence = Presence::required;
};

struct Shape {
  static constexpr std::size_t kMostAxes = 8;
  std::array<std::int64_t, kMostAxes> sizes{};
  std::size_t rank = 0;

  std::int64_t last() const { return rank == 0 ? 1 : sizes[rank - 1]; }
  std::size_t count() const;
  std::string text() const;  // [2, 3]
};

struct Tensor {
  const void* data = nullptr;  // null where an optional input was left out
  Shape shape;

  const float* floats() const { return static_cast<const float*>(data); }
};

template <class T>
inline constexpr Element kElementOf = Element{};
template <>
inline constexpr Element kElementOf<float> = Element::f32;
template <>
inline constexpr Element kElementOf<std::int8_t> = Element::i8;
template <>
inline constexpr Element kElementOf<std::int32_t> = Element::i32;

// The node that a kernel is made for.
class Setup {
 public:
  Setup(const Api* api, const Info* info) : api_(api), info_(info) {}

  float number(const char* name) const;
  std::string text(const char* name) const;
  std::size_t size(const char* name) const;  // at least 1
  Tensor constant(std::size_t index) const;  // its data is null where it is no initializer

 private:
  const Api* api_;
  const Info* info_;
};

// One run of a kernel.
class Run {
 public:
  Run(const Api* api, Context* context) : api_(api), context_(context) {}

  Tensor input(std::size_t index) const;
  float* output(const Shape& shape, std::size_t index = 0);
  kernels::Parallel parallel();

 private:
  static void run_on_pool(void* self, std::size_t count, kernels::Parallel::Body body, void* data);

  const Api* api_;
  Context* context_;
};

// An input that is an initializer as a rule: looked up once and read where it lies, or copied once where it
// lies unaligned.
class Weights {
 public:
  struct Wanted {
    std::size_t index;
    const char* name;
    std::size_t count;  // of elements
    std::size_t element_size;
    bool aligned = false;  // to `kAlignment`
  };

  Weights(const Setup& setup, const Wanted& wanted);

  template <class T>
  const T* get(const Run& run) const {
    return static_cast<const T*>(data_ != nullptr ? data_ : fetch(run));
  }

 private:
  struct Free {
    void operator()(void* block) const { ::operator delete(block, std::align_val_t{kAlignment}); }
  };

  const void* fetch(const Run& run) const;  // of an input that is none; null where it was left out
  void check(const Tensor& tensor) const;
  bool lies_well(const void* data) const;

  Wanted wanted_;
  std::unique_ptr<void, Free> copy_;
  const void* data_ = nullptr;
};

// Runs `body` and makes a status of what it throws; null if nothing.
template <class F>
Status* guarded(const Api* api, const char* name, F&& body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return CreateStatus::call(api, Code::invalid_argument,
                              (std::string(name) + ": " + failure.what()).c_str());
  } catch (const std::exception& error) {
    return CreateStatus::call(api, Code::fail, (std::string(name) + ": " + error.what()).c_str());
  }
}

// How onnxruntime sees a class `Kernel`; see above.
template <class Kernel>
const CustomOp* custom_op() {
  struct Instance {
    const Api* api;
    Kernel kernel;
  };
  static const CustomOp op = [] {
    CustomOp made{};
    made.version = kVersion;
    made.get_name = [](const CustomOp*) { return Kernel::kName; };
    made.get_provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
    made.get_input_type = [](const CustomOp*, std::size_t index) { return Kernel::kInputs[index].element; };
    made.get_input_count = [](const CustomOp*) { return std::size(Kernel::kInputs); };
    made.get_output_type = [](const CustomOp*, std::size_t) { return Element::f32; };
    made.get_output_count = [](const CustomOp*) {
      if constexpr (requires { Kernel::kOutputs; }) return Kernel::kOutputs;
      return std::size_t{1};
    };
    made.get_input_presence = [](const CustomOp*, std::size_t index) {
      return Kernel::kInputs[index].presence;
    };
    made.get_output_presence = [](const CustomOp*, std::size_t) { return Presence::required; };
    made.get_input_memory = [](const CustomOp*, std::size_t) { return 0; };
    made.create_kernel_v2 = [](const CustomOp*, const Api* api, const Info* info, void** kernel) {
      return guarded(api, Kernel::kName, [&] { *kernel = new Instance{api, Kernel(Setup(api, info))}; });
    };
    made.compute_v2 = [](void* self, Context* context) {
      const auto& instance = *static_cast<const Instance*>(self);
      return guarded(instance.api, Kernel::kName, [&] {
        Run run(instance.api, context);
        instance.kernel.run(run);
      });
    };
    if constexpr (requires { Kernel::kResidual; }) {
      made.get_may_inplace = [](int** input, int** output) {
        *input = new int(Kernel::kResidual);
        *output = new int(0);
        return std::size_t{1};
      };
      made.release_may_inplace = [](int* input, int* output) {
        delete input;
        delete output;
      };
    }
    made.destroy = [](void* self) { delete static_cast<Instance*>(self); };
    return made;
  }();
  return &op;
}

}  // namespace vlrt::ort
