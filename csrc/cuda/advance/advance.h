#pragma once

#include "core/forest_layout.h"

namespace apar::cuda {

struct AdvanceParams {
  Forest forest;           // on the device; the configuration is the one that its header has there
  const int32_t* sampled;  // [num_sampled] on the device
  int32_t num_sampled;
  int32_t row_limit;  // most rows of the next step, at least 1
  int32_t* scratch;   // advance_scratch_ints numbers on the device, or null where that is 0
  int32_t threads;    // of the block; a multiple of 32 up to 1024, 0: what suits the forest
};

// Numbers of work space that a step may need beyond the shared memory of a block.
int64_t advance_scratch_ints(const ForestConfig& config, int device);

// A step of all branches in one launch of one block: the twin of cpu::advance (docs/forest.md), with the same numbers
// in the whole forest but for the schedule's scratch and what stands behind the used parts of its sections. What only
// the device can see is reported (core/device_report.h): a token below -1 ends its branch; with fewer tokens than rows,
// or a header of another configuration, the forest stays as it is.
void advance(const AdvanceParams& params, int device, void* stream);

}  // namespace apar::cuda
