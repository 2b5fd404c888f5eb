#include "cuda/advance/advance.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/advance/kernel.cuh"
#include "cuda/launch.h"

namespace apar::cuda {
namespace {

int64_t most_plan_ints(const ForestConfig& config) {
  const ForestSizes sizes(config);
  return plan_work_space(sizes.rows, sizes.ranges);
}

// For the plan; the rest of the shared memory is the scans'.
int32_t shared_plan_ints(const ForestConfig& config) {
  const int64_t room = device_limits().shared_bytes_per_block / int64_t{sizeof(int32_t)} - BlockScan::kSharedInts;
  return static_cast<int32_t>(std::min(room, most_plan_ints(config)));
}

ForestOf<GlobalInts> on_device(const Forest& forest) {
  ForestOf<GlobalInts> result;
  result.header = forest.header;
  result.config = forest.config;
  result.page_shift = forest.page_shift;
#define APAR_POINT(name, rows, columns) result.name = GlobalInts{forest.name};
  APAR_FOREST_TENSORS(APAR_POINT)
#undef APAR_POINT
  return result;
}

// A thread per row and per branch, as far as a block has them.
int threads_for(const ForestConfig& config) {
  const int32_t most = std::max(config.max_rows, config.num_slots);
  return std::min((most + kWarpSize - 1) / kWarpSize * kWarpSize, kAdvanceThreads);
}

}  // namespace

int64_t advance_scratch_ints(const ForestConfig& config, int device) {
  const DeviceScope scope(device);
  const int64_t most = most_plan_ints(config);
  return most > shared_plan_ints(config) ? most : 0;
}

void advance(const AdvanceParams& params, int device, void* stream) {
  const DeviceScope scope(device);
  const ForestConfig& config = params.forest.config;
  if (ForestSizes(config).ranges >= plan_detail::kMostRanges) {
    throw std::invalid_argument("advance: forest has room for " + std::to_string(ForestSizes(config).ranges) +
                                " ranges of a step, expected less than " + std::to_string(plan_detail::kMostRanges) +
                                " on a CUDA device");
  }
  AdvanceArguments arguments{};
  arguments.forest = on_device(params.forest);
  arguments.sampled = params.sampled;
  arguments.scratch = params.scratch;
  arguments.num_sampled = params.num_sampled;
  arguments.max_rows = std::min(params.row_limit, config.max_rows);
  arguments.total_size = static_cast<int32_t>(forest_size(config));
  arguments.shared_ints = shared_plan_ints(config);
  arguments.report = device_report();
  const int shared_bytes = (BlockScan::kSharedInts + arguments.shared_ints) * static_cast<int>(sizeof(int32_t));
  allow_shared_bytes(advance_kernel, shared_bytes);
  launch("advance", advance_kernel, 1, params.threads > 0 ? params.threads : threads_for(config), shared_bytes, stream,
         arguments);
}

}  // namespace apar::cuda
