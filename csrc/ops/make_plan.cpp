// make_plan: the attention plan of a step, from ranges that the caller keeps.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <limits>

#include "core/plan.h"
#include "ops/check.h"
#include "ops/plan_check.h"
#if defined(APAR_WITH_CUDA)
#include "core/work.h"
#include "cuda/make_plan/make_plan.h"
#include "cuda/tree_attention/tree_attention.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check check("make_plan");

[[noreturn]] void fail(const PlanFault& fault, const PlanInput& input) {
  switch (fault.kind) {
    case PlanFault::kIndptrStart:
      check.fail("row_indptr[0] is ", fault.value, ", expected 0");
    case PlanFault::kIndptrOrder:
      check.fail("row_indptr[", fault.index, "] is ", fault.value, ", expected at least row_indptr[", fault.index - 1,
                 "] = ", input.row_indptr[fault.index - 1]);
    case PlanFault::kIndptrEnd:
      check.fail("row_indptr[", fault.index, "] is ", fault.value, ", expected at most the number of ranges ",
                 input.num_ranges);
    case PlanFault::kStream:
      check.fail("range_stream[", fault.index, "] is ", fault.value, ", expected 0 to S - 1 = ", input.num_streams - 1);
    case PlanFault::kNegative:
      check.fail("range_begin[", fault.index, "] is ", fault.value, ", expected at least 0");
    case PlanFault::kOrder:
      check.fail("range_end[", fault.index, "] is ", fault.value, ", expected at least range_begin[", fault.index,
                 "] = ", input.range_begin[fault.index]);
    case PlanFault::kPastTable:
      check.fail("range_end[", fault.index, "] is ", fault.value, ", expected at most max_pages * page_size = ",
                 static_cast<int64_t>(input.max_pages) * input.page_size);
    default:
      check.fail("page_table[", fault.stream, ", ", fault.index, "] is ", fault.value,
                 ", expected a page id of at least 0 where a range reads it");
  }
}

// Everything but the numbers in the tensors.
PlanInput check_arguments(const Tensor& page_table, const Tensor& row_indptr, const Tensor& range_stream,
                          const Tensor& range_begin, const Tensor& range_end, int64_t num_kv_heads, int64_t group_size,
                          int64_t page_size) {
  check.index("page_table", page_table, {{"S"}, {"max_pages"}}, "page_table", page_table);
  check.index("row_indptr", row_indptr, {{"R + 1"}}, "page_table", page_table);
  check.index("range_stream", range_stream, {{"N"}}, "page_table", page_table);
  const int64_t num_ranges = range_stream.size(0), num_rows = row_indptr.size(0) - 1;
  check.index("range_begin", range_begin, {{"N", num_ranges}}, "page_table", page_table);
  check.index("range_end", range_end, {{"N", num_ranges}}, "page_table", page_table);
  check.that(num_rows >= 0, "row_indptr has shape [0], expected [R + 1]");
  check_heads(check, num_kv_heads, group_size);
  check_page_size(check, "page_size", page_size);
  // Indices into the schedule and the numbers of rows and entries are int32.
  const int64_t max_entries = page_table.size(1) * page_size;
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() / 16;
  check.that(num_rows <= kLargest, "row_indptr has ", num_rows, " rows, expected at most ", kLargest);
  check.that(num_ranges <= kLargest, "range_stream has ", num_ranges, " ranges, expected at most ", kLargest);
  check.that(max_entries <= 16 * kLargest, "page_table has room for ", max_entries,
             " entries in a stream, expected at most ", 16 * kLargest);
  check.that(page_table.size(0) <= 16 * kLargest, "page_table has ", page_table.size(0), " streams, expected at most ",
             16 * kLargest);

  return {.num_rows = num_rows,
          .num_ranges = num_ranges,
          .row_indptr = row_indptr.const_data_ptr<int32_t>(),
          .range_stream = range_stream.const_data_ptr<int32_t>(),
          .range_begin = range_begin.const_data_ptr<int32_t>(),
          .range_end = range_end.const_data_ptr<int32_t>(),
          .num_streams = static_cast<int32_t>(page_table.size(0)),
          .max_pages = static_cast<int32_t>(page_table.size(1)),
          .max_page = 0,
          .num_kv_heads = static_cast<int32_t>(num_kv_heads),
          .group_size = static_cast<int32_t>(group_size),
          .page_size = static_cast<int32_t>(page_size)};
}

Tensor make_plan_cpu(const Tensor& page_table, const Tensor& row_indptr, const Tensor& range_stream,
                     const Tensor& range_begin, const Tensor& range_end, int64_t num_kv_heads, int64_t group_size,
                     int64_t page_size, bool) {
  const PlanInput input = check_arguments(page_table, row_indptr, range_stream, range_begin, range_end, num_kv_heads,
                                          group_size, page_size);
  if (const PlanFault fault = check_plan_input(input); fault.kind != PlanFault::kNone) fail(fault, input);

  Tensor schedule = torch::stable::new_empty(row_indptr, {schedule_size(input.num_rows, input.num_ranges)});
  int32_t* data = schedule.mutable_data_ptr<int32_t>();
  // The sections are as long as the worst case needs; equal arguments shall give equal schedules, unused parts
  // included.
  std::memset(data, 0, static_cast<size_t>(schedule.numel()) * sizeof(int32_t));
  write_plan(input, data);
  int32_t max_page = -1;
  const PlanFault fault = find_pages(data, page_table.const_data_ptr<int32_t>(), max_page);
  if (fault.kind != PlanFault::kNone) fail(fault, input);
  reinterpret_cast<PlanHeader*>(data)->max_page = max_page;
  return schedule;
}

#if defined(APAR_WITH_CUDA)
// The work list alone; the schedule is work space. What is wrong with the ranges stops the launch.
Tensor make_plan_cuda(const Tensor& page_table, const Tensor& row_indptr, const Tensor& range_stream,
                      const Tensor& range_begin, const Tensor& range_end, int64_t num_kv_heads, int64_t group_size,
                      int64_t page_size, bool batch_invariant) {
  const PlanInput input = check_arguments(page_table, row_indptr, range_stream, range_begin, range_end, num_kv_heads,
                                          group_size, page_size);
  const int32_t device = page_table.get_device_index();
  const WorkInput work_input =
      work_input_for(input.num_rows, num_kv_heads, group_size, cuda::multiprocessors_of(device), batch_invariant);
  Tensor work = torch::stable::new_empty(
      row_indptr, {work_size(input.num_rows, input.num_ranges, num_kv_heads, group_size, work_input)});
  Tensor schedule = torch::stable::new_empty(row_indptr, {schedule_size(input.num_rows, input.num_ranges)});
  Tensor scratch = torch::stable::new_empty(row_indptr, {cuda::make_plan_scratch_ints(input, work_input, device)});
  cuda::MakePlanParams params{};
  params.input = input;
  params.plans[0] = {0, nullptr, schedule.mutable_data_ptr<int32_t>(), work.mutable_data_ptr<int32_t>()};
  params.num_plans = 1;
  params.work_input = work_input;
  params.scratch = scratch.numel() > 0 ? scratch.mutable_data_ptr<int32_t>() : nullptr;
  params.check = true;
  cuda::make_plan(params, device, current_cuda_stream(page_table));
  return work;
}
#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def(
      "make_plan(Tensor page_table, Tensor row_indptr, Tensor range_stream, Tensor range_begin, Tensor range_end, "
      "int num_kv_heads, int group_size, int page_size, bool batch_invariant=True) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("make_plan", TORCH_BOX(&apar::ops::make_plan_cpu)); }

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("make_plan", TORCH_BOX(&apar::ops::make_plan_cuda)); }
#endif
