// Launches of one element type and head size; instantiations/*.cu name them, one line each.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/tree_attention/kernel.cuh"

namespace apar::cuda {

template <typename Traits>
void launch_rows(TreeAttentionArguments arguments, int64_t max_items, void* stream) {
  const DeviceLimits limits = device_limits();
  arguments.stages = Traits::stages_for(limits.shared_bytes_per_block);
  if (arguments.stages == 0) {
    throw std::invalid_argument("tree_attention: head_dim " + std::to_string(Traits::kHeadDim) + " with " +
                                std::to_string(Traits::kRows) + " packed rows needs " + std::to_string(Traits::shared_bytes(2)) +
                                " bytes of shared memory, the device has " + std::to_string(limits.shared_bytes_per_block));
  }
  const int shared_bytes = Traits::shared_bytes(arguments.stages);
  const int resident = resident_blocks(tree_attention_kernel<Traits>, Traits::kThreads, shared_bytes);
  const int64_t blocks = std::min<int64_t>(max_items * arguments.params.num_kv_heads,
                                           static_cast<int64_t>(resident) * limits.multiprocessors);
  launch("tree_attention", tree_attention_kernel<Traits>, blocks, Traits::kThreads, shared_bytes, stream, arguments);
}

template <typename T, int kHeadDim>
void launch_tree_attention(const TreeAttentionArguments& arguments, int packed_rows, int64_t max_items, void* stream) {
  switch (packed_rows) {
    case 16:
      return launch_rows<TreeAttentionTraits<T, kHeadDim, 16>>(arguments, max_items, stream);
    case 32:
      return launch_rows<TreeAttentionTraits<T, kHeadDim, 32>>(arguments, max_items, stream);
    default:
      return launch_rows<TreeAttentionTraits<T, kHeadDim, 64>>(arguments, max_items, stream);
  }
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_TREE_ATTENTION(T, head_dim) \
  template void apar::cuda::launch_tree_attention<apar::cuda::T, head_dim>(const apar::cuda::TreeAttentionArguments&, int, int64_t, void*)
