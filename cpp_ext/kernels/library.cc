// What `_kernels` shows to the outside: the registration that onnxruntime looks for, and what the processor
// can do.
#include <mutex>

#include "cpu.h"
#include "operator.h"
#include "operators.h"

#if defined(_WIN32)
#define VLRT_KERNELS_EXPORT extern "C" __declspec(dllexport)
#else
#define VLRT_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace vlrt::ort {
namespace {

using Factory = const CustomOp* (*)();
constexpr Factory kOperators[] = {linear_op,     linear_int8_op, attention_op,  cached_attention_op,
                                  conv1x1_op,    conv3x3_op,     group_norm_op, gated_gelu_op,
                                  embed_int8_op, layer_norm_op};

// The domain with its operators, made once: sessions go on using it until the process ends.
Status* make_domain(const Api* api, Domain*& domain) {
  if (Status* status = CreateCustomOpDomain::call(api, "vlrt", &domain)) return status;
  for (const Factory factory : kOperators) {
    if (Status* status = CustomOpDomainAdd::call(api, domain, factory())) return status;
  }
  return nullptr;
}

}  // namespace
}  // namespace vlrt::ort

// 0: the kernels cannot run here; 1: with AVX-512; 2: with VNNI too.
VLRT_KERNELS_EXPORT int vlrt_kernels_level(void) {
  return static_cast<int>(vlrt::kernels::level());
}

// What `SessionOptions.register_custom_ops_library` calls.
VLRT_KERNELS_EXPORT vlrt::ort::Status* RegisterCustomOps(vlrt::ort::SessionOptions* options,
                                                         const vlrt::ort::ApiBase* base) {
  using namespace vlrt::ort;
  const Api* api = base->get_api(kVersion);
  if (api == nullptr)
    return CreateStatus::call(base->get_api(1), Code::fail, "vlrt's kernels need onnxruntime 1.21");
  if (vlrt::kernels::level() == vlrt::kernels::Level::none) {
    return CreateStatus::call(api, Code::fail, "vlrt's kernels need a processor with AVX-512");
  }
  static Domain* domain = nullptr;
  static std::mutex making;
  {
    const std::lock_guard<std::mutex> lock(making);
    if (domain == nullptr) {
      if (Status* status = make_domain(api, domain)) {
        domain = nullptr;
        return status;
      }
    }
  }
  return AddCustomOpDomain::call(api, options, domain);
}
