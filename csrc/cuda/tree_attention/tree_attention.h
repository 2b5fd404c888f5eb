#pragma once

#include "core/work.h"
#include "cuda/tree_attention/params.h"

namespace apar::cuda {

// Attention of every row over its ranges, on `stream` of `device`: one launch. `work` was made by write_work with
// `input`; the sections that params names are looked up there. `kv_element`: of the caches, `element` or kFloat8.
// Throws before the launch where the device cannot run it.
void tree_attention(TreeAttentionParams params, Element element, Element kv_element, int32_t* work,
                    const WorkInput& input, int device, void* stream);

int multiprocessors_of(int device);

}  // namespace apar::cuda
