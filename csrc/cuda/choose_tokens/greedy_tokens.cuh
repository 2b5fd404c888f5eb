// greedy_tokens: one block per row, which reads it once.
#pragma once

#include "cuda/choose_tokens/row.cuh"

namespace apar::cuda {

constexpr int kGreedySharedBytes = kRowWarps * static_cast<int>(sizeof(uint64_t));

template <typename Element>
APAR_KERNEL(kRowThreads, 1)
greedy_tokens_kernel(APAR_GRID_CONSTANT GreedyTokensParams params) {
  const LogitRow<Element> row(params.rows, block_index());
  const Best best = best_of(row, shared_memory<uint64_t>());
  if (thread_index() == 0) store_global(params.tokens + block_index(), best.token);
}

}  // namespace apar::cuda
