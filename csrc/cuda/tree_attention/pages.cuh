// The page table may have changed since the plan was made, and only the device sees it.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/params.h"

namespace apar::cuda {

// Page 0 for an id that the caches do not have, so that nothing else is read.
APAR_DEVICE int known_page(const TreeAttentionParams& params, int stream, int page) {
  if (page >= 0 && page < params.num_pages) return page;
  report(params.report, DeviceFault::kPageId, stream, page, static_cast<int>(params.num_pages) - 1);
  return 0;
}

}  // namespace apar::cuda
