#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace apar::cpu {

// logits: [rows, *] of 2-, 4- or 8-byte elements, row_stride elements apart; minus_infinity holds the bits of -inf of
// their type. Columns are token ids, -1: none.
struct MaskLogitsParams {
  void* logits;
  const int32_t* may_fork;  // [rows]
  int64_t rows;
  int64_t row_stride;
  int64_t element_bytes;
  uint64_t minus_infinity;
  int64_t fork_token;
  int64_t child_token;
};

// Writes -inf to the child column of every row and to the fork column of rows that may not fork.
void mask_logits(const MaskLogitsParams& params, const ParallelFor& parallel_for);

}  // namespace apar::cpu
