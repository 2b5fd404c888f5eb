// Logits of any type as float32, a block at a time.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/choose_tokens.h"
#include "cpu/parallel.h"

namespace apar::cpu {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16Bits value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(Float16Bits value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  // Moved to the place of float32's exponent; the product corrects the bias, subnormal numbers included.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const float number = magnitude >= 0x7c00 ? std::bit_cast<float>(0x7f800000 | magnitude << 13) : scaled;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(number));
}

// One row with its forbidden tokens as -inf.
template <class Element>
class LogitRow {
 public:
  LogitRow(const LogitRows& rows, int64_t row)
      : logits_(static_cast<const Element*>(rows.logits) + row * rows.row_stride),
        forbidden_{rows.child_token, rows.may_fork[row] != 0 ? -1 : rows.fork_token} {}

  // Tokens [begin, end) to values[0], values[1] ...
  void read(int64_t begin, int64_t end, float* values) const {
    for (int64_t i = begin; i < end; ++i) values[i - begin] = to_float(logits_[i]);
    for (const int64_t token : forbidden_) {
      if (token >= begin && token < end) values[token - begin] = kMinusInfinity;
    }
  }

 private:
  const Element* logits_;
  int64_t forbidden_[2];
};

// Calls choose(LogitRow, row) for every row, in parallel.
template <class Choose>
void for_each_logit_row(const LogitRows& rows, int64_t columns_per_task, const ParallelFor& parallel_for,
                        const Choose& choose) {
  const int64_t grain = std::max<int64_t>(1, columns_per_task / std::max<int64_t>(1, rows.columns));
  parallel_for(rows.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      switch (rows.type) {
        case LogitType::kFloat32:
          choose(LogitRow<float>(rows, row), row);
          break;
        case LogitType::kFloat16:
          choose(LogitRow<Float16Bits>(rows, row), row);
          break;
        case LogitType::kBFloat16:
          choose(LogitRow<BFloat16Bits>(rows, row), row);
          break;
      }
    }
  });
}

}  // namespace apar::cpu
