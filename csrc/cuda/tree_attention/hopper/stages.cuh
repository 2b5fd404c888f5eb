// The ring of stages between the warp that fills them and those that compute, and its barriers: `full` when a stage's
// description and copies are there, `empty` when every computing warp is done with it.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"

namespace apar::cuda {

// A stage, and the parity of its barriers' phase in this round.
struct Stage {
  const int size;
  int index = 0, phase = 0;
  APAR_DEVICE explicit Stage(int size) : size(size) {}
  APAR_DEVICE void next() {
    if (++index < size) return;
    index = 0;
    phase ^= 1;
  }
};

// Shared addresses.
template <typename Traits>
APAR_DEVICE uint32_t queries_address(const typename Traits::Shared* shared, const SharedPlan& plan) {
  return shared_address(shared + 1) + Traits::totals_bytes(plan.rows);
}
template <typename Traits>
APAR_DEVICE uint32_t stage_address(const typename Traits::Shared* shared, const SharedPlan& plan, int stage) {
  return shared_address(shared + 1) + Traits::before_stages(plan) + stage * Traits::kStageBytes;
}

// All threads.
template <typename Traits>
APAR_DEVICE void start_barriers(typename Traits::Shared* shared, int stages) {
  if (thread_index() == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      initialize_barrier(&shared->full[stage], 1);
      initialize_barrier(&shared->empty[stage], kWarps);
    }
    fence_barriers();
  }
  synchronize_block();
}

// The computing warps.
template <typename Traits, typename Folding>
APAR_DEVICE void fold_stages(const TreeAttentionArguments& arguments, typename Traits::Shared* shared) {
  Folding fold(arguments, shared, reinterpret_cast<unsigned char*>(shared + 1));
  for (Stage stage(arguments.shared.stages);; stage.next()) {
    wait_arrivals(&shared->full[stage.index], stage.phase);
    const uint32_t keys = stage_address<Traits>(shared, arguments.shared, stage.index);
    if (!fold.take(&shared->blocks[stage.index], keys, keys + Traits::kHalfStageBytes)) return;
    synchronize_warp();
    if (lane_index() == 0) arrive(&shared->empty[stage.index]);
  }
}

}  // namespace apar::cuda
