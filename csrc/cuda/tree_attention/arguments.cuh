// What the kernels are launched with, and the launches that instantiations/*.cu provide.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/softmax.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

struct TreeAttentionArguments {
  TreeAttentionParams params;
  ScoreScale score_scale;
  SharedPlan shared;
  int32_t parts;  // of shared.rows packed rows, that the largest item falls into
};

// T: Half or BFloat16; Kv: T or Float8.
template <typename T, typename Kv, int kHeadDim>
void launch_tree_attention(const TreeAttentionArguments& arguments, int packed_rows, int bins, void* stream);

}  // namespace apar::cuda
