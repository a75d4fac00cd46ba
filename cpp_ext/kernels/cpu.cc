#include "cpu.h"

#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace vlrt::kernels {
namespace {

struct Registers {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
};

#if defined(_MSC_VER)
Registers cpuid(std::uint32_t leaf) {
  int answer[4] = {};
  __cpuid(answer, 0);
  if (static_cast<std::uint32_t>(answer[0]) < leaf) return {};
  __cpuidex(answer, static_cast<int>(leaf), 0);
  return {static_cast<std::uint32_t>(answer[0]), static_cast<std::uint32_t>(answer[1]),
          static_cast<std::uint32_t>(answer[2]), static_cast<std::uint32_t>(answer[3])};
}

std::uint64_t saved_state() {
  return _xgetbv(0);
}
#else
Registers cpuid(std::uint32_t leaf) {
  Registers found;
  if (__get_cpuid_count(leaf, 0, &found.a, &found.b, &found.c, &found.d) == 0) return {};
  return found;
}

// As bytes: the intrinsic would need the whole file compiled for a processor that has it.
std::uint64_t saved_state() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}
#endif

constexpr bool has(std::uint64_t bits, std::uint64_t wanted) {
  return (bits & wanted) == wanted;
}

// Intel's manual, volume 1, 15.2 to 15.4: the processor has the instructions, and the system saves their
// registers.
Level ask() {
  constexpr std::uint32_t kFma = 1u << 12, kOsxsave = 1u << 27;  // leaf 1, ECX
  constexpr std::uint32_t kFoundation = 1u << 16, kDq = 1u << 17, kBw = 1u << 30,
                          kVl = 1u << 31;    // leaf 7, EBX
  constexpr std::uint32_t kVnni = 1u << 11;  // leaf 7, ECX
  constexpr std::uint64_t kState = 0xe6;     // SSE, AVX, masks and both halves of the 512-bit registers
  if (!has(cpuid(1).c, kFma | kOsxsave) || !has(saved_state(), kState)) return Level::none;
  const Registers features = cpuid(7);
  if (!has(features.b, kFoundation | kDq | kBw | kVl)) return Level::none;
  return has(features.c, kVnni) ? Level::avx512_vnni : Level::avx512;
}

}  // namespace

Level level() {
  static const Level found = ask();
  return found;
}

}  // namespace vlrt::kernels
