// Launches of one element type and head size; instantiations/*.cu name them, one line each.
#pragma once

#include "cuda/launch.h"
#include "cuda/tree_attention/hopper/bulk_kernel.cuh"

namespace apar::cuda {

template <typename T, int kHeadDim>
bool launch_bulk_attention(const TreeAttentionArguments& common, int packed_rows, int bins, void* stream) {
  using Traits = BulkTraits<T, kHeadDim>;
  const TreeAttentionParams& params = common.params;
  const int64_t rows = params.num_pages * params.num_kv_heads * params.page_size;
  const int box_rows = params.page_size < kTokens ? params.page_size : kTokens;
  BulkArguments arguments{common, static_cast<int32_t>(rows), {}, {}};
  const DeviceLimits limits = device_limits();
  SharedPlan& plan = arguments.common.shared;
  plan = Traits::plan_for(packed_rows, limits.compute_capability, limits.shared_bytes_per_block);
  if (plan.stages == 0 || !make_tensor_map(&arguments.keys, params.k_cache, rows, kHeadDim, box_rows) ||
      !make_tensor_map(&arguments.values, params.v_cache, rows, kHeadDim, box_rows)) {
    return false;
  }
  arguments.common.parts = packed_rows / plan.rows;
  const int shared_bytes = Traits::shared_bytes(plan);
  allow_shared_bytes(bulk_attention_kernel<Traits>, shared_bytes);
  const int64_t blocks = static_cast<int64_t>(bins) * arguments.common.parts * params.num_kv_heads;
  launch("tree_attention", bulk_attention_kernel<Traits>, blocks, Traits::kThreads, shared_bytes, stream, arguments);
  return true;
}

}  // namespace apar::cuda

#define APAR_INSTANTIATE_BULK_ATTENTION(T, head_dim)                                                                  \
  template bool apar::cuda::launch_bulk_attention<apar::cuda::T, head_dim>(const apar::cuda::TreeAttentionArguments&, \
                                                                           int, int, void*)
