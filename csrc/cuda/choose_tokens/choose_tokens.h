#pragma once

#include "core/choose_tokens.h"

namespace apar::cuda {

// One launch each, on `stream` of `device`; tokens and numbers as apar::cpu gives them, bit for bit.
void greedy_tokens(const GreedyTokensParams& params, int device, void* stream);
void sample_tokens(const SampleTokensParams& params, int device, void* stream);
void draw_numbers(const DrawNumbersParams& params, int device, void* stream);

}  // namespace apar::cuda
