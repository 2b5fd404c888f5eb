// mask_logits_: one thread per row; no shared memory.
#pragma once

#include "core/mask_logits.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kMaskLogitsThreads = 128;

// Bits: an unsigned integer of the size of a logit.
template <typename Bits>
APAR_KERNEL(kMaskLogitsThreads, 1)
mask_logits_kernel(APAR_GRID_CONSTANT MaskLogitsParams params) {
  const int64_t row = static_cast<int64_t>(block_index()) * kMaskLogitsThreads + thread_index();
  if (row >= params.rows) return;
  Bits* logits = static_cast<Bits*>(params.logits) + row * params.row_stride;
  const Bits minus_infinity = static_cast<Bits>(params.minus_infinity);
  if (params.child_token >= 0) store_global(logits + params.child_token, minus_infinity);
  if (params.fork_token >= 0 && load_constant(params.may_fork + row) == 0) {
    store_global(logits + params.fork_token, minus_infinity);
  }
}

}  // namespace apar::cuda
