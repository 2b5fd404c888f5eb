#include "cuda/make_plan/make_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/make_plan/kernel.cuh"

namespace apar::cuda {
namespace {

int64_t most_ints(const PlanInput& input, const WorkInput& work_input) {
  return plan_work_space(input.num_rows, input.num_ranges) +
         list_work_space(input.num_rows, input.group_size, work_input);
}

int32_t shared_ints(const PlanInput& input, const WorkInput& work_input) {
  const int64_t room = device_limits().shared_bytes_per_block / int64_t{sizeof(int32_t)} - BlockScan::kSharedInts;
  return static_cast<int32_t>(std::min(room, most_ints(input, work_input)));
}

}  // namespace

int64_t make_plan_scratch_ints(const PlanInput& input, const WorkInput& work_input, int device) {
  const DeviceScope scope(device);
  const int64_t most = most_ints(input, work_input);
  return most > shared_ints(input, work_input) ? most : 0;
}

void make_plan(const MakePlanParams& params, int device, void* stream) {
  if (params.num_plans < 1) return;
  const DeviceScope scope(device);
  if (params.input.num_ranges >= plan_detail::kMostRanges) {
    throw std::invalid_argument("make_plan: range_stream has " + std::to_string(params.input.num_ranges) +
                                " ranges, expected less than " + std::to_string(plan_detail::kMostRanges) +
                                " on a CUDA device");
  }
  MakePlanArguments arguments{};
  arguments.params = params;
  arguments.report = device_report();
  arguments.scratch_ints = most_ints(params.input, params.work_input);
  arguments.shared_ints = shared_ints(params.input, params.work_input);
  const int shared_bytes = (BlockScan::kSharedInts + arguments.shared_ints) * static_cast<int>(sizeof(int32_t));
  allow_shared_bytes(make_plan_kernel, shared_bytes);
  int threads = params.threads;
  if (threads == 0) {
    const int64_t rows = (params.input.num_rows + kWarpSize - 1) / kWarpSize * kWarpSize;
    threads = static_cast<int>(std::clamp<int64_t>(rows, 4 * kWarpSize, kMakePlanThreads));
  }
  launch("make_plan", make_plan_kernel, params.num_plans, threads, shared_bytes, stream, arguments);
}

}  // namespace apar::cuda
