// Launches of one element type, cache type and head size; instantiations/*.cu name them, one line each.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/tree_attention/kernel.cuh"

namespace apar::cuda {

template <typename T, typename Kv, int kHeadDim>
void launch_tree_attention(const TreeAttentionArguments& common, int packed_rows, int bins, void* stream) {
  using Traits = TreeAttentionTraits<T, Kv, kHeadDim>;
  const DeviceLimits limits = device_limits();
  TreeAttentionArguments arguments = common;
  arguments.shared = Traits::plan_for(packed_rows, limits.compute_capability, limits.shared_bytes_per_block);
  if (arguments.shared.stages == 0) {
    throw std::invalid_argument("tree_attention: head_dim " + std::to_string(kHeadDim) + " needs " +
                                std::to_string(Traits::shared_bytes({32, 32, 2})) +
                                " bytes of shared memory per block of threads, the device has " +
                                std::to_string(limits.shared_bytes_per_block));
  }
  arguments.parts = packed_rows / arguments.shared.rows;
  const int shared_bytes = Traits::shared_bytes(arguments.shared);
  allow_shared_bytes(tree_attention_kernel<Traits>, shared_bytes);
  launch("tree_attention", tree_attention_kernel<Traits>,
         static_cast<int64_t>(bins) * arguments.parts * arguments.params.num_kv_heads, Traits::kThreads, shared_bytes,
         stream, arguments);
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_TREE_ATTENTION(T, Kv, head_dim)                                    \
  template void apar::cuda::launch_tree_attention<apar::cuda::T, apar::cuda::Kv, head_dim>( \
      const apar::cuda::TreeAttentionArguments&, int, int, void*)
