#pragma once

#include <cstdint>

namespace apar::emulator {

// Runs one of the small kernels in faulty_kernels.cpp by name. input: [256]; output: [256]; counter: [1], zero.
void run_faulty(const char* name, const int32_t* input, int32_t* output, int32_t* counter);

}  // namespace apar::emulator
