// A small test framework: TEST(name) { EXPECT(condition); }. No dependencies, so that it runs under any sanitizer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace apar::test {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

// Pools to run kernels with.
inline void serial(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  if (count > 0) body(0, count);
}

// Ignores the grain on purpose: more, smaller tasks find more mistakes.
inline void threads(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  constexpr int64_t kThreads = 4;
  const int64_t share = (count + kThreads - 1) / kThreads;
  std::vector<std::thread> pool;
  for (int64_t begin = 0; begin < count; begin += share) {
    pool.emplace_back(body, begin, begin + share < count ? begin + share : count);
  }
  for (std::thread& thread : pool) thread.join();
}

}  // namespace apar::test

#define TEST(name)                                                        \
  static void test_##name();                                              \
  static const apar::test::Register register_##name(#name, &test_##name); \
  static void test_##name()

#define EXPECT(condition)                                                            \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)
