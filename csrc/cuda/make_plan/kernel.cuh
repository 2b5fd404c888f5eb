// make_plan: a block per plan writes the schedule and then the work list.
//
// Grid: the number of plans. Shared memory: room for two scans, then the work space of plan and list, as far as it
// fits; whether it does is seen on the device, where the number of ranges is.
#pragma once

#include "cuda/make_plan/make_plan.h"
#include "cuda/make_plan/plan.cuh"
#include "cuda/make_plan/work.cuh"

namespace apar::cuda {

struct MakePlanArguments {
  MakePlanParams params;
  int64_t scratch_ints;  // of a plan
  DeviceReport* report;
  int32_t shared_ints;
};

constexpr int kMakePlanThreads = 512;

// Whether row_indptr is what it should be. All threads of the block call.
APAR_DEVICE bool is_good_indptr(const PlanInput& input, DeviceReport* target) {
  bool good = true;
  for (int64_t row = thread_index(); row <= input.num_rows; row += block_size()) {
    const int32_t begin = row > 0 ? load_global(input.row_indptr + row - 1) : 0;
    const int32_t end = load_global(input.row_indptr + row);
    if (end >= begin && end <= input.num_ranges && begin >= 0 && (row > 0 || end == 0)) continue;
    good = false;
    report(target, DeviceFault::kPlanIndptr, static_cast<int>(row), end, static_cast<int>(input.num_ranges));
  }
  return !any_in_block(!good);
}

template <class Ints>
APAR_DEVICE void make_plan_in(const MakePlanArguments& arguments, const RangeCheck& check, Arena<Ints> arena,
                              int32_t num_ranges, BlockScan& scan) {
  const MakePlanParams& params = arguments.params;
  const PlanTarget& target = params.plans[block_index()];
  const WindowView window{params.row_position, params.first_position, target.begins, target.window};
  PlanWorkSpace<Ints> space(arena, static_cast<int32_t>(params.input.num_rows), num_ranges);
  const PlanTotals totals = BlockPlan<Ints>(params.input, window, check, space, scan, target.schedule).write();
  synchronize_block();
  BlockWork<Ints>(params.input, totals, params.work_input, space, arena, scan, target.schedule, target.work).write();
}

APAR_KERNEL(kMakePlanThreads, 1)
make_plan_kernel(APAR_GRID_CONSTANT MakePlanArguments arguments) {
  const MakePlanParams& params = arguments.params;
  int32_t* shared = shared_memory<int32_t>();
  BlockScan scan(shared);
  const int64_t num_rows = params.input.num_rows;
  RangeCheck check;
  if (params.check) check = {arguments.report, !is_good_indptr(params.input, arguments.report)};
  if (params.rows_in_use != nullptr && thread_index() == 0) {
    const int32_t rows = load_global(params.rows_in_use);
    if (rows > num_rows) report(arguments.report, DeviceFault::kPlanRows, 0, rows, static_cast<int>(num_rows));
  }
  const int32_t num_ranges = num_rows > 0 && !check.no_ranges ? load_global(params.input.row_indptr + num_rows) : 0;
  const int64_t needed =
      plan_work_space(num_rows, num_ranges) + list_work_space(num_rows, params.input.group_size, params.work_input);
  if (needed <= arguments.shared_ints) {
    make_plan_in(arguments, check, Arena<SharedInts>{{shared + BlockScan::kSharedInts}}, num_ranges, scan);
  } else {
    make_plan_in(arguments, check, Arena<GlobalInts>{{params.scratch + block_index() * arguments.scratch_ints}},
                 num_ranges, scan);
  }
}

}  // namespace apar::cuda
