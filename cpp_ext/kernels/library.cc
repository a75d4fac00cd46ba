// What `_kernels` shows to the outside.
#include "cpu.h"

#if defined(_WIN32)
#define VLRT_KERNELS_EXPORT extern "C" __declspec(dllexport)
#else
#define VLRT_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// 0: the kernels cannot run here; 1: with AVX-512; 2: with VNNI too.
VLRT_KERNELS_EXPORT int vlrt_kernels_level(void) {
  return static_cast<int>(vlrt::kernels::level());
}
