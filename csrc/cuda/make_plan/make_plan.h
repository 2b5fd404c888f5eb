#pragma once

#include "core/plan.h"
#include "core/work.h"

namespace apar::cuda {

constexpr int32_t kMaxPlans = 8;  // of one launch

// One of several plans over the same rows; pointers on the device.
struct PlanTarget {
  int32_t window;     // positions that a row sees; 0: all of its ranges
  int32_t* begins;    // [N], where the clipped ranges begin, or null
  int32_t* schedule;  // [schedule_size(R, N)], work space
  int32_t* work;      // [work_size(...)], aligned to 16 bytes
};

struct MakePlanParams {
  PlanInput input;                // pointers on the device
  const int32_t* row_position;    // [R], where there are windows
  const int32_t* first_position;  // [S], likewise
  PlanTarget plans[kMaxPlans];
  int32_t num_plans;
  WorkInput work_input;
  const int32_t* rows_in_use;  // on the device: more than input.num_rows are reported; or null
  int32_t* scratch;            // num_plans * make_plan_scratch_ints numbers, or null where that is 0
  bool check;                  // ranges that nobody has checked: bad ones are left out and reported
  int32_t threads;             // of a block; a multiple of 32 up to 512, 0: what suits the number of rows
};

// Numbers of work space that a plan may need beyond the shared memory of a block.
int64_t make_plan_scratch_ints(const PlanInput& input, const WorkInput& work_input, int device);

// Writes plans and their work lists, the twin of write_plan and write_work, in one launch of a block per plan. Waits
// for nothing. Schedules are written but for their scratch and what stands behind the used parts of sections; so are
// lists.
void make_plan(const MakePlanParams& params, int device, void* stream);

}  // namespace apar::cuda
