// What the choice of the next tokens is told, on every device.
#pragma once

#include <cstdint>

namespace apar {

enum class LogitType : int32_t { kFloat32, kFloat16, kBFloat16 };

// logits: [rows, columns], rows row_stride elements apart. Columns are token ids; the child token is never chosen, the
// fork token only in rows that may fork; -1: no such token.
struct LogitRows {
  const void* logits;
  const int32_t* may_fork;  // [rows]
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t fork_token;
  int64_t child_token;
  LogitType type;
};

// Tokens of both: -1 where a logit is NaN, or the largest that is allowed is not finite.
struct GreedyTokensParams {
  LogitRows rows;
  int32_t* tokens;  // [rows]: the first of the largest
};

struct SampleTokensParams {
  LogitRows rows;
  const uint64_t* numbers;  // [rows]: random, all 64 bits; the upper 53 are used
  int32_t* tokens;          // [rows]
  float factor;             // log2(e) / temperature
  int64_t top_k;            // 0: off
  uint64_t top_p;           // in units of 2^-64; 0: off
};

struct DrawNumbersParams {
  uint64_t* keys;               // [slots], of each slot's branch; those of the branches just opened are written
  const int32_t* opened;        // [slots, 6], as a forest tells of them
  const int32_t* num_opened;    // [1]
  const int32_t* parent;        // [slots]
  const int32_t* row_slot;      // [rows], -1: padding
  const int32_t* row_position;  // [rows], of the tokens that are fed
  uint64_t* numbers;            // [rows], for the tokens behind them
  int64_t slots;
  int64_t rows;
};

}  // namespace apar
