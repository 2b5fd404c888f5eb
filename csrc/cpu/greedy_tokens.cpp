#include "cpu/greedy_tokens.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace apar::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 1024;
constexpr int kLanes = 32;

float to_float(float value) { return value; }
float to_float(uint16_t bfloat16) { return std::bit_cast<float>(static_cast<uint32_t>(bfloat16) << 16); }

// The block of logits from `begin` on, filled up with -inf, which also stands in place of the forbidden tokens.
template <class Element>
void load_block(const Element* logits, int64_t begin, int64_t end, const int64_t (&forbidden)[2], float* block) {
  for (int64_t i = begin; i < end; ++i) block[i - begin] = to_float(logits[i]);
  std::fill(block + (end - begin), block + kBlock, kMinusInfinity);
  for (const int64_t token : forbidden) {
    if (token >= begin && token < end) block[token - begin] = kMinusInfinity;
  }
}

// The largest number of a block, NaN if it holds one. Written in lanes, which the compiler keeps in vector registers.
float largest(const float* block) {
  float best[kLanes];
  int32_t unordered[kLanes] = {};
  std::fill_n(best, kLanes, kMinusInfinity);
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = block[i + lane];
      best[lane] = value > best[lane] ? value : best[lane];
      unordered[lane] |= value != value ? 1 : 0;
    }
  }
  if (std::any_of(unordered, unordered + kLanes, [](int32_t any) { return any != 0; })) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  return *std::max_element(best, best + kLanes);
}

template <class Element>
int32_t greedy_token(const Element* logits, int64_t columns, const int64_t (&forbidden)[2]) {
  alignas(64) float block[kBlock];
  float best = kMinusInfinity;
  int64_t best_begin = 0;
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    load_block(logits, begin, std::min(begin + kBlock, columns), forbidden, block);
    const float block_best = largest(block);
    if (std::isnan(block_best)) return -1;
    if (block_best > best) {
      best = block_best;
      best_begin = begin;
    }
  }
  if (!std::isfinite(best)) return -1;
  load_block(logits, best_begin, std::min(best_begin + kBlock, columns), forbidden, block);
  return static_cast<int32_t>(best_begin + (std::find(block, block + kBlock, best) - block));
}

template <class Element>
void choose_rows(const GreedyTokensParams& params, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t forbidden[2] = {params.child_token, params.may_fork[row] != 0 ? -1 : params.fork_token};
    const Element* logits = static_cast<const Element*>(params.logits) + row * params.row_stride;
    params.tokens[row] = greedy_token(logits, params.columns, forbidden);
  }
}

}  // namespace

void greedy_tokens(const GreedyTokensParams& params, const ParallelFor& parallel_for) {
  // A thread is worth waking for some tens of thousands of logits.
  constexpr int64_t kColumnsPerTask = 1 << 16;
  const int64_t grain = std::max<int64_t>(1, kColumnsPerTask / std::max<int64_t>(1, params.columns));
  parallel_for(params.rows, grain, [&params](int64_t begin, int64_t end) {
    return params.is_bfloat16 ? choose_rows<uint16_t>(params, begin, end) : choose_rows<float>(params, begin, end);
  });
}

}  // namespace apar::cpu
