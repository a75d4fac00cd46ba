// The least of a test framework: named tests, and checks that say where they failed.
#pragma once

#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vlrt::test {

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(std::string name, std::function<void()> body) {
    tests().push_back({std::move(name), std::move(body)});
  }
};

inline void check(bool holds, const char* what, const char* file, int line) {
  if (!holds) throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename Error, typename Body>
bool throws(Body&& body) {
  try {
    body();
  } catch (const Error&) {
    return true;
  }
  return false;
}

inline bool near(double a, double b, double tolerance) {
  return std::fabs(a - b) <= tolerance;
}

}  // namespace vlrt::test

#define CHECK(condition) ::vlrt::test::check((condition), #condition, __FILE__, __LINE__)
#define TEST(name)                                                  \
  static void name();                                               \
  static const ::vlrt::test::Register register_##name{#name, name}; \
  static void name()
