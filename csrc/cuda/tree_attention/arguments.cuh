// What the kernels are launched with, and the launches that instantiations/*.cu provide.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/softmax.cuh"

namespace apar::cuda {

struct TreeAttentionArguments {
  TreeAttentionParams params;
  ScoreScale score_scale;
  int32_t stages;
  int32_t parts;  // tiles of the kernel that an item's packed rows fill
};

// T: Half or BFloat16.
template <typename T, int kHeadDim>
void launch_tree_attention(const TreeAttentionArguments& arguments, int packed_rows, int bins, void* stream);

}  // namespace apar::cuda
