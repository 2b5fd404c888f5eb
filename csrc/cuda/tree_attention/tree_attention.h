#pragma once

#include "cuda/tree_attention/params.h"

namespace apar::cuda {

// Attention of every row over its ranges, on `stream` of `device`: one launch. `params.work` was made by write_work
// with `packed_rows` and holds at most `max_items` items. Throws before the launch where the device cannot run it.
void tree_attention(const TreeAttentionParams& params, Element element, int packed_rows, int64_t max_items, int device,
                    void* stream);

// The most packed rows (16, 32 or 64) that kernels of this head size may have on `device`; 0: not supported there.
int max_packed_rows(Element element, int head_dim, int device);

}  // namespace apar::cuda
