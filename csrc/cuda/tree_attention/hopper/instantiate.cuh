// Launches of one element type and head size; instantiations/*.cu name them, one line each.
#pragma once

#include "cuda/launch.h"
#include "cuda/tree_attention/hopper/bulk_kernel.cuh"

namespace apar::cuda {

template <typename Traits>
bool launch_bulk_rows(BulkArguments arguments, int packed_rows, int bins, void* stream) {
  const DeviceLimits limits = device_limits();
  TreeAttentionArguments& common = arguments.common;
  common.stages = Traits::stages_for(limits.shared_bytes_per_block);
  if (common.stages == 0) return false;
  common.parts = packed_rows / Traits::kRows;
  const int shared_bytes = Traits::shared_bytes(common.stages);
  allow_shared_bytes(bulk_attention_kernel<Traits>, shared_bytes);
  const int64_t blocks = static_cast<int64_t>(bins) * common.parts * common.params.num_kv_heads;
  launch("tree_attention", bulk_attention_kernel<Traits>, blocks, Traits::kThreads, shared_bytes, stream, arguments);
  return true;
}

template <typename T, int kHeadDim>
bool launch_bulk_attention(const TreeAttentionArguments& common, int packed_rows, int bins, void* stream) {
  const TreeAttentionParams& params = common.params;
  const int64_t rows = params.num_pages * params.num_kv_heads * params.page_size;
  const int box_rows = params.page_size < kTokens ? params.page_size : kTokens;
  BulkArguments arguments{common, static_cast<int32_t>(rows), {}, {}};
  if (!make_tensor_map(&arguments.keys, params.k_cache, rows, kHeadDim, box_rows) ||
      !make_tensor_map(&arguments.values, params.v_cache, rows, kHeadDim, box_rows)) {
    return false;
  }
  if constexpr (most_packed_rows(kHeadDim) >= 64) {
    if (packed_rows >= 64) {
      return launch_bulk_rows<BulkTraits<T, kHeadDim, 64>>(arguments, packed_rows, bins, stream);
    }
  }
  if (packed_rows >= 32) {
    return launch_bulk_rows<BulkTraits<T, kHeadDim, 32>>(arguments, packed_rows, bins, stream);
  }
  return launch_bulk_rows<BulkTraits<T, kHeadDim, 16>>(arguments, packed_rows, bins, stream);
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_BULK_ATTENTION(T, head_dim)                                                                  \
  template bool apar::cuda::launch_bulk_attention<apar::cuda::T, head_dim>(const apar::cuda::TreeAttentionArguments&, \
                                                                           int, int, void*)
