// What the kernels for Hopper are launched with, and the launches that instantiations/*.cu provide.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/hopper/traits.h"

namespace apar::cuda {

struct BulkArguments {
  TreeAttentionArguments common;
  int32_t past_the_end;  // row of the maps' matrices that does not exist
  TensorMap keys;        // of the caches as matrices [num_pages x Hkv x page_size, D]
  TensorMap values;
};

// For caches that has_panels; warpgroups: where items have 128 packed rows, let warpgroups multiply. False: this device
// or these sizes need the portable kernel.
template <typename T, typename Kv, int kHeadDim>
bool launch_bulk_attention(const TreeAttentionArguments& arguments, bool warpgroups, int packed_rows, int bins,
                           void* stream);

}  // namespace apar::cuda
