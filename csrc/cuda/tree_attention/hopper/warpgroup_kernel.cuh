// tree_attention for 16-bit numbers and up to 128 packed rows on Hopper: as bulk_kernel.cuh, with products of whole
// warpgroups (warpgroup_fold.cuh). The third warpgroup gives most of its registers to the two that compute; one of its
// warps is the producer.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/hopper/arguments.cuh"
#include "cuda/tree_attention/hopper/producer.cuh"
#include "cuda/tree_attention/hopper/stages.cuh"
#include "cuda/tree_attention/hopper/traits.h"
#include "cuda/tree_attention/hopper/warpgroup_fold.cuh"

namespace apar::cuda {

template <typename Traits>
APAR_KERNEL(Traits::kThreads, 1)
warpgroup_attention_kernel(APAR_GRID_CONSTANT BulkArguments arguments) {
  auto* shared = shared_memory<typename Traits::Shared>();
  start_barriers<Traits>(shared, arguments.common.shared.stages);
  if (warp_index() >= kWarps) {
    give_registers<Traits::kProducerRegisters>();
    if (warp_index() == kWarps) Producer<Traits>(arguments, shared).run();
  } else {
    take_registers<Traits::kComputeRegisters>();
    fold_stages<Traits, WarpgroupFold<Traits>>(arguments.common, shared);
  }
}

}  // namespace apar::cuda
