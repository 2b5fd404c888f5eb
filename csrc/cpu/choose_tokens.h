// The choice of the next tokens, on the CPU: what every other implementation must agree with.
#pragma once

#include "core/choose_tokens.h"
#include "cpu/parallel.h"

namespace apar::cpu {

void greedy_tokens(const GreedyTokensParams& params, const ParallelFor& parallel_for);

// Of the tokens that are allowed, in this order:
//   top_k: those stay that are at least as likely as the top_k-th likeliest;
//   top_p: from the likeliest on, and of equals from the first on, a token stays while those before it together have
//     less than this part of the weight;
//   the number picks one by its weight, in the order of their ids.
void sample_tokens(const SampleTokensParams& params, const ParallelFor& parallel_for);

// Keys of the branches just opened, then a number for every row.
void draw_numbers(const DrawNumbersParams& params);

}  // namespace apar::cpu
