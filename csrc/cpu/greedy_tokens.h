#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace apar::cpu {

// logits: [rows, columns] float32, or bfloat16 if `is_bfloat16`, rows row_stride elements apart. Columns are token ids;
// the child token is never chosen, the fork token only in rows that may fork; -1: no such token.
struct GreedyTokensParams {
  const void* logits;
  const int32_t* may_fork;  // [rows]
  int32_t* tokens;          // [rows]: the first of the largest; -1 where a logit is NaN or the largest is not finite
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  bool is_bfloat16;
  int64_t fork_token;
  int64_t child_token;
};

void greedy_tokens(const GreedyTokensParams& params, const ParallelFor& parallel_for);

}  // namespace apar::cpu
