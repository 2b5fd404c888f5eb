#include "cpu/cpu_features.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace apar::cpu {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"portable", "avx2", "avx512", "avx512bf16"};

CpuLevel detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
    return CpuLevel::kPortable;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return CpuLevel::kAvx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? CpuLevel::kAvx512Bf16 : CpuLevel::kAvx512;
#else
  return CpuLevel::kPortable;
#endif
}

CpuLevel initial_level() {
  const char* name = std::getenv("APAR_CPU_LEVEL");
  if (name == nullptr || *name == '\0') return detected_cpu_level();
  return std::min(cpu_level_from_name(name), detected_cpu_level());
}

std::atomic<CpuLevel>& current_level() {
  static std::atomic<CpuLevel> level(initial_level());
  return level;
}

}  // namespace

CpuLevel detected_cpu_level() {
  static const CpuLevel level = detect();
  return level;
}

CpuLevel cpu_level() { return current_level().load(std::memory_order_relaxed); }

void limit_cpu_level(CpuLevel limit) { current_level().store(std::min(limit, detected_cpu_level())); }

std::string_view cpu_level_name(CpuLevel level) { return kNames[static_cast<size_t>(level)]; }

CpuLevel cpu_level_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<CpuLevel>(i);
  }
  throw std::invalid_argument("CPU level is '" + std::string(name) +
                              "', expected one of portable, avx2, avx512, avx512bf16");
}

}  // namespace apar::cpu
