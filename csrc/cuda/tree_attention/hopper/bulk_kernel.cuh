// tree_attention on Hopper: as kernel.cuh, but the copy engine brings keys and values.
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
#include "cuda/tree_attention/hopper/stages.cuh"
#include "cuda/tree_attention/hopper/traits.h"

namespace apar::cuda {

template <typename Traits>
APAR_KERNEL(Traits::kThreads, 1)
bulk_attention_kernel(APAR_GRID_CONSTANT BulkArguments arguments) {
  auto* shared = shared_memory<typename Traits::Shared>();
  start_barriers<Traits>(shared, arguments.common.shared.stages);
  if (warp_index() == kWarps) {
    Producer<Traits>(arguments, shared).run();
  } else {
    fold_stages<Traits, Fold<Traits>>(arguments.common, shared);
  }
}

}  // namespace apar::cuda
