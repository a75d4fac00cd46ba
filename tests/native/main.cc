#include <cstdio>
#include <exception>

#include "check.h"

int main() {
  int failed = 0;
  for (const auto& test : vlrt::test::tests()) {
    try {
      test.body();
      std::printf("ok      %s\n", test.name.c_str());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s: %s\n", test.name.c_str(), error.what());
    }
  }
  std::printf("%zu tests, %d failed\n", vlrt::test::tests().size(), failed);
  return failed == 0 ? 0 : 1;
}
