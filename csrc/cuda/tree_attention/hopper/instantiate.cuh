// Launches of one element type, cache type and head size; instantiations/*.cu name them, one line each.
#pragma once

#include "cuda/launch.h"
#include "cuda/tree_attention/hopper/bulk_kernel.cuh"
#include "cuda/tree_attention/hopper/warpgroup_kernel.cuh"

namespace apar::cuda {

// False: there is not enough shared memory.
template <typename Traits>
bool launch_stages(void (*kernel)(BulkArguments), BulkArguments arguments, int packed_rows, int bins, void* stream) {
  TreeAttentionArguments& common = arguments.common;
  common.shared = Traits::plan_for(packed_rows, device_limits().shared_bytes_per_block);
  if (common.shared.stages == 0) return false;
  common.parts = packed_rows / common.shared.rows;
  const int shared_bytes = Traits::shared_bytes(common.shared);
  allow_shared_bytes(kernel, shared_bytes);
  launch("tree_attention", kernel, static_cast<int64_t>(bins) * common.parts * common.params.num_kv_heads,
         Traits::kThreads, shared_bytes, stream, arguments);
  return true;
}

template <typename T, typename Kv, int kHeadDim>
bool launch_bulk_attention(const TreeAttentionArguments& common, bool warpgroups, int packed_rows, int bins,
                           void* stream) {
  const TreeAttentionParams& params = common.params;
  const int64_t rows = params.num_pages * params.num_kv_heads * params.page_size;
  const int box_rows = params.page_size < kTokens ? params.page_size : kTokens;
  const int columns = kHeadDim * static_cast<int>(sizeof(Kv)) / 2;  // of 16 bits, whatever they hold
  BulkArguments arguments{common, static_cast<int32_t>(rows), {}, {}};
  if (!make_tensor_map(&arguments.keys, params.k_cache, rows, columns, box_rows) ||
      !make_tensor_map(&arguments.values, params.v_cache, rows, columns, box_rows)) {
    return false;
  }
  if constexpr (has_warpgroups<T, Kv>(kHeadDim)) {
    using Traits = WarpgroupTraits<T, kHeadDim>;
    if (warpgroups && packed_rows == Traits::kMaxRows &&
        launch_stages<Traits>(warpgroup_attention_kernel<Traits>, arguments, packed_rows, bins, stream)) {
      return true;
    }
  }
  using Traits = BulkTraits<T, Kv, kHeadDim>;
  return launch_stages<Traits>(bulk_attention_kernel<Traits>, arguments, packed_rows, bins, stream);
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_BULK_ATTENTION(T, Kv, head_dim)                                    \
  template bool apar::cuda::launch_bulk_attention<apar::cuda::T, apar::cuda::Kv, head_dim>( \
      const apar::cuda::TreeAttentionArguments&, bool, int, int, void*)
