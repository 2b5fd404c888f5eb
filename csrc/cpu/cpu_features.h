// Which instructions the CPU kernels may use, decided at run time.
#pragma once

#include <string_view>

namespace apar::cpu {

// Each level includes those before it.
enum class CpuLevel { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best level of this machine.
CpuLevel detected_cpu_level();

// The level that kernels use: the detected one, unless APAR_CPU_LEVEL or limit_cpu_level lowered it.
CpuLevel cpu_level();

// Lowers the level (for tests and benchmarks); a level above the detected one means the detected one.
void limit_cpu_level(CpuLevel limit);

// "portable", "avx2", "avx512", "avx512bf16".
std::string_view cpu_level_name(CpuLevel level);

// Throws std::invalid_argument for an unknown name.
CpuLevel cpu_level_from_name(std::string_view name);

}  // namespace apar::cpu
