#include "scratch.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vlrt::kernels {
namespace {

constexpr std::size_t kLine = 64, kLargePage = std::size_t{2} << 20;

}  // namespace

Scratch::~Scratch() {
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t{border_});
}

float* Scratch::grow(std::size_t floats) {
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t{border_});
  data_ = nullptr;
  floats_ = 0;
  std::size_t bytes = floats * sizeof(float);
  border_ = bytes < kLargePage ? kLine : kLargePage;
  bytes = (bytes + border_ - 1) / border_ * border_;
  data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{border_}));
  floats_ = floats;
#if defined(__linux__)
  if (border_ == kLargePage) madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: small pages do as well
#endif
  return data_;
}

}  // namespace vlrt::kernels
