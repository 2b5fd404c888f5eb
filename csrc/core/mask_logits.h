// What mask_logits_ is told, on every device.
#pragma once

#include <cstdint>

namespace apar {

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

}  // namespace apar
