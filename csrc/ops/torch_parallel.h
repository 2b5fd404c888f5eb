// torch's thread pool as the ParallelFor of the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "cpu/parallel.h"

namespace apar::ops {

inline void torch_parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

}  // namespace apar::ops
