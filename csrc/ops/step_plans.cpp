// write_step_plans: the plans of a forest's step, padded to a number of rows, over addresses that stay.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "core/forest_rules.h"
#include "core/step_plan.h"
#include "cpu/forest.h"
#include "ops/check.h"
#include "ops/forest_check.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/make_plan/make_plan.h"
#include "cuda/tree_attention/tree_attention.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check step_check("write_step_plans");

// What the tensors of write_step_plans must be beside the forest.
struct StepPlans {
  int64_t rows, ranges, num_plans;
  const int32_t* windows;
};

StepPlans check_step_plans(const Tensor& forest, const Forest& view, const Tensor& begins, const Tensor& plans,
                           const Tensor& windows, int64_t rows, int64_t multiprocessors) {
  const Check& check = step_check;
  check.that(rows >= 1 && rows <= view.config.max_rows, "rows is ", rows,
             ", expected 1 to max_rows = ", view.config.max_rows);
  check.that(windows.is_cpu(), "windows is not on the CPU, expected a tensor there");
  check.index("windows", windows, {{"num_plans"}}, "windows", windows);
  const int64_t num_plans = windows.size(0), ranges = step_plan_ranges(rows, view.config.max_ranges);
  const int64_t size =
      step_plan_size(rows, view.config.max_ranges, view.config.num_kv_heads, view.config.group_size, multiprocessors);
  check.index("begins", begins, {{"num_plans", num_plans}, {"N", ranges}}, "forest", forest);
  check.index("plans", plans, {{"num_plans", num_plans}, {"size", size}}, "forest", forest);
  const int32_t* numbers = windows.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < num_plans; ++i) {
    check.that(numbers[i] >= 0, "windows[", i, "] is ", numbers[i], ", expected a number of positions, or 0 for all");
  }
  return {rows, ranges, num_plans, numbers};
}

void write_step_plans_cpu(const Tensor& forest, const Tensor& begins, const Tensor& plans, const Tensor& windows,
                          int64_t rows, std::optional<Tensor>) {
  const Forest view = open_forest("write_step_plans", forest);
  const StepPlans step = check_step_plans(forest, view, begins, plans, windows, rows, 0);
  step_check.that(view.header->num_rows <= rows, "rows is ", rows,
                  ", expected at least num_rows = ", view.header->num_rows);
  for (int64_t i = 0; i < step.num_plans; ++i) {
    PlanInput input = step_plan_input(view, static_cast<int32_t>(rows), static_cast<int32_t>(step.ranges));
    int32_t* seen = begins.mutable_data_ptr<int32_t>() + i * step.ranges;
    std::copy_n(view.range_begin, step.ranges, seen);
    if (step.windows[i] > 0) {
      cpu::window_begins({.rows = rows,
                          .row_indptr = view.row_indptr,
                          .row_position = view.row_position,
                          .range_stream = view.range_stream,
                          .range_begin = view.range_begin,
                          .range_end = view.range_end,
                          .first_position = view.first_position,
                          .window = step.windows[i]},
                         seen);
    }
    input.range_begin = seen;
    write_plan(input, plans.mutable_data_ptr<int32_t>() + i * plans.size(1));
  }
}

#if defined(APAR_WITH_CUDA)

void write_step_plans_cuda(const Tensor& forest, const Tensor& begins, const Tensor& plans, const Tensor& windows,
                           int64_t rows, std::optional<Tensor> header) {
  const Forest view = device_forest(step_check, forest, header);
  const ForestConfig& config = view.config;
  const int32_t device = forest.get_device_index();
  const int64_t multiprocessors = cuda::multiprocessors_of(device);
  const StepPlans step = check_step_plans(forest, view, begins, plans, windows, rows, multiprocessors);
  const WorkInput work_input = work_input_for(rows, config.num_kv_heads, config.group_size, multiprocessors);
  step_check.that(reinterpret_cast<uintptr_t>(plans.const_data_ptr()) % 16 == 0,
                  "plans does not start at a multiple of 16 bytes");
  const PlanInput input = step_plan_input(view, static_cast<int32_t>(rows), static_cast<int32_t>(step.ranges));
  const int64_t schedule_ints = schedule_size(rows, step.ranges);
  const int64_t scratch_ints = cuda::make_plan_scratch_ints(input, work_input, device);
  for (int64_t first = 0; first < step.num_plans; first += cuda::kMaxPlans) {
    const int64_t count = std::min<int64_t>(step.num_plans - first, cuda::kMaxPlans);
    Tensor schedules = torch::stable::new_empty(forest, {count, schedule_ints});
    Tensor scratch = torch::stable::new_empty(forest, {count * scratch_ints});
    cuda::MakePlanParams params{};
    params.input = input;
    params.row_position = view.row_position;
    params.first_position = view.first_position;
    for (int64_t i = 0; i < count; ++i) {
      params.plans[i] = {step.windows[first + i], begins.mutable_data_ptr<int32_t>() + (first + i) * step.ranges,
                         schedules.mutable_data_ptr<int32_t>() + i * schedule_ints,
                         plans.mutable_data_ptr<int32_t>() + (first + i) * plans.size(1)};
    }
    params.num_plans = static_cast<int32_t>(count);
    params.work_input = work_input;
    params.rows_in_use = &view.header->num_rows;
    params.scratch = scratch.numel() > 0 ? scratch.mutable_data_ptr<int32_t>() : nullptr;
    cuda::make_plan(params, device, current_cuda_stream(forest));
  }
}

#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def(
      "write_step_plans(Tensor forest, Tensor(a!) begins, Tensor(b!) plans, Tensor windows, int rows, "
      "Tensor? header=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("write_step_plans", TORCH_BOX(&apar::ops::write_step_plans_cpu)); }
#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("write_step_plans", TORCH_BOX(&apar::ops::write_step_plans_cuda)); }
#endif
