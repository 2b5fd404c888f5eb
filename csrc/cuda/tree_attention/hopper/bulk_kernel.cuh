// tree_attention for 16-bit numbers on Hopper: as kernel.cuh, but the copy engine brings keys and values.
//
// The last warp of a block of threads, the producer, decides what the steps are (scheduler.cuh) and starts their
// copies: pages that are seen as a whole are boxes of the copy engine, and so are pages that nobody sees, which lie
// past the matrix and arrive as zeros without a read. Pages seen in part are copied entry by entry, zeros where nobody
// looks, so that no byte is read in vain and no number that nobody may see reaches a product. The computing warps
// (fold.cuh) start no copies and meet no barrier of the whole block: a stage is handed back and forth through two
// mbarriers.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/fold.cuh"
#include "cuda/tree_attention/hopper/arguments.cuh"
#include "cuda/tree_attention/hopper/producer.cuh"
#include "cuda/tree_attention/hopper/traits.h"

namespace apar::cuda {

template <typename Traits>
APAR_DEVICE void compute_bulk(const TreeAttentionArguments& arguments, typename Traits::Shared* shared) {
  Fold<Traits> fold(arguments, shared, reinterpret_cast<unsigned char*>(shared + 1));
  const uint32_t stages = shared_address(shared + 1) + Traits::before_stages(arguments.shared);
  for (Stage stage(arguments.shared.stages);; stage.next()) {
    wait_arrivals(&shared->full[stage.index], stage.phase);
    const uint32_t keys = stages + stage.index * Traits::kStageBytes;
    if (!fold.take(&shared->blocks[stage.index], keys, keys + Traits::kHalfStageBytes)) return;
    synchronize_warp();
    if (lane_index() == 0) arrive(&shared->empty[stage.index]);
  }
}

template <typename Traits>
APAR_KERNEL(Traits::kThreads, 1)
bulk_attention_kernel(APAR_GRID_CONSTANT BulkArguments arguments) {
  auto* shared = shared_memory<typename Traits::Shared>();
  if (thread_index() == 0) {
    for (int stage = 0; stage < arguments.common.shared.stages; ++stage) {
      initialize_barrier(&shared->full[stage], 1);
      initialize_barrier(&shared->empty[stage], kWarps);
    }
    fence_barriers();
  }
  synchronize_block();
  if (warp_index() == kWarps) {
    Producer<Traits>(arguments, shared).run();
  } else {
    compute_bulk<Traits>(arguments.common, shared);
  }
}

}  // namespace apar::cuda
