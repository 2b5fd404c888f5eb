#include <algorithm>
#include <cmath>

#include "cpu/choose_tokens.h"
#include "cpu/logits.h"

namespace apar::cpu {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int kLanes = 32;

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

template <class Row>
int32_t greedy_token(const Row& row, int64_t columns) {
  alignas(64) float block[kBlock];
  const auto load = [&](int64_t begin) {
    const int64_t end = std::min(begin + kBlock, columns);
    row.read(begin, end, block);
    std::fill(block + (end - begin), block + kBlock, kMinusInfinity);
  };
  float best = kMinusInfinity;
  int64_t best_begin = 0;
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    load(begin);
    const float block_best = largest(block);
    if (std::isnan(block_best)) return -1;
    if (block_best > best) {
      best = block_best;
      best_begin = begin;
    }
  }
  if (!std::isfinite(best)) return -1;
  load(best_begin);
  return static_cast<int32_t>(best_begin + (std::find(block, block + kBlock, best) - block));
}

}  // namespace

void greedy_tokens(const GreedyTokensParams& params, const ParallelFor& parallel_for) {
  // A thread is worth waking for some tens of thousands of logits.
  for_each_logit_row(params.rows, 1 << 16, parallel_for, [&params](const auto& row, int64_t index) {
    params.tokens[index] = greedy_token(row, params.rows.columns);
  });
}

}  // namespace apar::cpu
