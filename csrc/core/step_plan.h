// Sizes of the plans of a forest's step, padded to a number of rows that does not change.
#pragma once

#include "core/plan.h"
#include "core/work.h"

namespace apar {

inline int64_t step_plan_ranges(int64_t rows, int64_t max_ranges) { return rows * (max_ranges + 1); }

// int32 numbers per plan: a schedule on the CPU (multiprocessors 0), a work list on a device with so many.
inline int64_t step_plan_size(int64_t rows, int64_t max_ranges, int64_t num_kv_heads, int64_t group_size,
                              int64_t multiprocessors) {
  const int64_t ranges = step_plan_ranges(rows, max_ranges);
  if (multiprocessors == 0) return schedule_size(rows, ranges);
  return work_size(rows, ranges, num_kv_heads, group_size,
                   work_input_for(rows, num_kv_heads, group_size, multiprocessors));
}

}  // namespace apar
