// Launches of one element type and head size; instantiations/*.cu name them, one line each.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/tree_attention/kernel.cuh"

namespace apar::cuda {

template <typename Traits>
void launch_rows(TreeAttentionArguments arguments, int packed_rows, int bins, void* stream) {
  const DeviceLimits limits = device_limits();
  arguments.stages = Traits::stages_for(limits.shared_bytes_per_block);
  arguments.parts = packed_rows / Traits::kRows;
  const int shared_bytes = Traits::shared_bytes(arguments.stages);
  allow_shared_bytes(tree_attention_kernel<Traits>, shared_bytes);
  const int64_t blocks = static_cast<int64_t>(bins) * arguments.parts * arguments.params.num_kv_heads;
  launch("tree_attention", tree_attention_kernel<Traits>, blocks, Traits::kThreads, shared_bytes, stream, arguments);
}

// With the largest tiles that items of `packed_rows` fill and the device has room for.
template <typename T, int kHeadDim>
void launch_tree_attention(const TreeAttentionArguments& arguments, int packed_rows, int bins, void* stream) {
  const int shared_bytes = device_limits().shared_bytes_per_block;
  if constexpr (most_packed_rows(kHeadDim) >= 64) {
    using Traits = TreeAttentionTraits<T, kHeadDim, 64>;
    if (packed_rows >= 64 && Traits::stages_for(shared_bytes) > 0) {
      return launch_rows<Traits>(arguments, packed_rows, bins, stream);
    }
  }
  using Traits32 = TreeAttentionTraits<T, kHeadDim, 32>;
  if (packed_rows >= 32 && Traits32::stages_for(shared_bytes) > 0) {
    return launch_rows<Traits32>(arguments, packed_rows, bins, stream);
  }
  using Traits16 = TreeAttentionTraits<T, kHeadDim, 16>;
  if (Traits16::stages_for(shared_bytes) > 0) {
    return launch_rows<Traits16>(arguments, packed_rows, bins, stream);
  }
  throw std::invalid_argument(
      "tree_attention: head_dim " + std::to_string(kHeadDim) + " needs " + std::to_string(Traits16::shared_bytes(2)) +
      " bytes of shared memory per block of threads, the device has " + std::to_string(shared_bytes));
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_TREE_ATTENTION(T, head_dim)                                                                  \
  template void apar::cuda::launch_tree_attention<apar::cuda::T, head_dim>(const apar::cuda::TreeAttentionArguments&, \
                                                                           int, int, void*)
