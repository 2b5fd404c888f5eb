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
                                std::to_string(Traits::kRows) + " packed rows needs " +
                                std::to_string(Traits::shared_bytes(2)) + " bytes of shared memory, the device has " +
                                std::to_string(limits.shared_bytes_per_block));
  }
  const int shared_bytes = Traits::shared_bytes(arguments.stages);
  const int resident = resident_blocks(tree_attention_kernel<Traits>, Traits::kThreads, shared_bytes);
  const int64_t blocks = std::min<int64_t>(max_items * arguments.params.num_kv_heads,
                                           static_cast<int64_t>(resident) * limits.multiprocessors);
  launch("tree_attention", tree_attention_kernel<Traits>, blocks, Traits::kThreads, shared_bytes, stream, arguments);
}

template <typename T, int kHeadDim>
void launch_tree_attention(const TreeAttentionArguments& arguments, int packed_rows, int64_t max_items, void* stream) {
  if (packed_rows == 16) return launch_rows<TreeAttentionTraits<T, kHeadDim, 16>>(arguments, max_items, stream);
  if (packed_rows == 32) return launch_rows<TreeAttentionTraits<T, kHeadDim, 32>>(arguments, max_items, stream);
  if constexpr (most_packed_rows(kHeadDim) >= 64) {
    if (packed_rows == 64) return launch_rows<TreeAttentionTraits<T, kHeadDim, 64>>(arguments, max_items, stream);
  }
  throw std::invalid_argument("tree_attention: packed_rows is " + std::to_string(packed_rows) +
                              ", expected 16 or 32 or, up to head_dim 128, 64");
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_TREE_ATTENTION(T, head_dim)                                                                  \
  template void apar::cuda::launch_tree_attention<apar::cuda::T, head_dim>(const apar::cuda::TreeAttentionArguments&, \
                                                                           int, int64_t, void*)
