// The forest's operators: checks of tensors in front of cpu/forest.h and cpu/advance.h.
#include "cpu/forest.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "cpu/advance.h"
#include "ops/check.h"
#include "ops/forest_check.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/advance/advance.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

Tensor int32_scalar(const Tensor& like, int32_t value) {
  Tensor result = torch::stable::new_empty(like, {});
  *result.mutable_data_ptr<int32_t>() = value;
  return result;
}

int32_t check_step(const Check& check, const Tensor& forest, const Tensor& sampled, std::optional<int64_t> row_limit) {
  check.index("sampled", sampled, {{"R"}}, "forest", forest);
  const int64_t limit = row_limit.value_or(INT32_MAX);
  check.that(limit >= 1 && limit <= INT32_MAX, "row_limit is ", limit, ", expected 1 to ", INT32_MAX);
  return static_cast<int32_t>(limit);
}

void advance(const Tensor& forest, const Tensor& sampled, std::optional<int64_t> row_limit, std::optional<Tensor>) {
  const Forest view = open_forest("advance", forest);
  const Check check("advance");
  const int32_t limit = check_step(check, forest, sampled, row_limit);
  const int32_t rows = view.header->num_rows;
  check.that(sampled.numel() >= rows, "sampled has ", sampled.numel(), " tokens, expected at least num_rows = ", rows);
  const int32_t* tokens = sampled.const_data_ptr<int32_t>();
  const int64_t bad_row = cpu::find_bad_token(view, tokens);
  check.that(bad_row < 0, "sampled[", bad_row, "] is ", bad_row < 0 ? 0 : tokens[bad_row],
             ", expected a token, or -1 to end the branch");
  cpu::advance(view, tokens, limit);
}

#if defined(APAR_WITH_CUDA)
void advance_cuda(const Tensor& forest, const Tensor& sampled, std::optional<int64_t> row_limit,
                  std::optional<Tensor> header) {
  const Check check("advance");
  const Forest view = device_forest(check, forest, header);
  const int32_t limit = check_step(check, forest, sampled, row_limit);
  const int32_t device = forest.get_device_index();
  Tensor scratch = torch::stable::new_empty(forest, {cuda::advance_scratch_ints(view.config, device)});
  cuda::advance({.forest = view,
                 .sampled = sampled.const_data_ptr<int32_t>(),
                 .num_sampled = static_cast<int32_t>(std::min<int64_t>(sampled.numel(), INT32_MAX)),
                 .row_limit = limit,
                 .scratch = scratch.numel() > 0 ? scratch.mutable_data_ptr<int32_t>() : nullptr,
                 .threads = 0},
                device, current_cuda_stream(forest));
}
#endif

void forest_reset(const Tensor& forest) {
  check_forest(Check("forest_reset"), forest);
  cpu::forest_reset(forest.mutable_data_ptr<int32_t>(), forest.numel());
}

void forest_schedule(const Tensor& forest) { cpu::schedule(open_forest("forest_schedule", forest)); }

Tensor forest_admit(const Tensor& forest, int64_t request, int64_t prompt_length, int64_t limit, int64_t last_token,
                    int64_t shared_slot) {
  const Forest view = open_forest("forest_admit", forest);
  return int32_scalar(forest, cpu::forest_admit(view, request, prompt_length, limit, last_token, shared_slot));
}

Tensor forest_open_shared(const Tensor& forest, int64_t length) {
  return int32_scalar(forest, cpu::forest_open_shared(open_forest("forest_open_shared", forest), length));
}

void forest_close_shared(const Tensor& forest, int64_t slot) {
  cpu::forest_close_shared(open_forest("forest_close_shared", forest), slot);
}

void forest_join(const Tensor& forest, int64_t parent, const Tensor& children) {
  const Forest view = open_forest("forest_join", forest);
  Check("forest_join").index("children", children, {{"num_children"}}, "forest", forest);
  cpu::forest_join(view, parent, children.const_data_ptr<int32_t>(), children.numel());
}

Tensor forest_cancel(const Tensor& forest, int64_t request) {
  return int32_scalar(forest, cpu::forest_cancel(open_forest("forest_cancel", forest), request));
}

Tensor window_begins(const Tensor& row_indptr, const Tensor& row_position, const Tensor& range_stream,
                     const Tensor& range_begin, const Tensor& range_end, const Tensor& first_position, int64_t window) {
  const Check check("window_begins");
  check.index("row_position", row_position, {{"R"}}, "row_indptr", row_indptr);
  check.index("row_indptr", row_indptr, {{"R + 1", row_position.numel() + 1}}, "row_position", row_position);
  check.index("range_stream", range_stream, {{"N"}}, "row_indptr", row_indptr);
  const int64_t ranges = range_stream.numel();
  check.index("range_begin", range_begin, {{"N", ranges}}, "row_indptr", row_indptr);
  check.index("range_end", range_end, {{"N", ranges}}, "row_indptr", row_indptr);
  check.index("first_position", first_position, {{"S"}}, "row_indptr", row_indptr);
  check.that(window >= 1 && window <= INT32_MAX, "window is ", window, ", expected at least 1");
  const int32_t* indptr = row_indptr.const_data_ptr<int32_t>();
  const int32_t* streams = range_stream.const_data_ptr<int32_t>();
  const int64_t rows = row_position.numel();
  check.that(indptr[0] == 0, "row_indptr[0] is ", indptr[0], ", expected 0");
  for (int64_t row = 0; row < rows; ++row) {
    check.that(indptr[row + 1] >= indptr[row] && indptr[row + 1] <= ranges, "row_indptr[", row + 1, "] is ",
               indptr[row + 1], ", expected ", indptr[row], " to N = ", ranges);
  }
  for (int32_t i = 0; i < indptr[rows]; ++i) {
    check.that(streams[i] >= 0 && streams[i] < first_position.numel(), "range_stream[", i, "] is ", streams[i],
               ", expected 0 to S - 1 = ", first_position.numel() - 1);
  }
  Tensor begins = torch::stable::clone(range_begin);
  cpu::window_begins({.rows = rows,
                      .row_indptr = indptr,
                      .row_position = row_position.const_data_ptr<int32_t>(),
                      .range_stream = streams,
                      .range_begin = range_begin.const_data_ptr<int32_t>(),
                      .range_end = range_end.const_data_ptr<int32_t>(),
                      .first_position = first_position.const_data_ptr<int32_t>(),
                      .window = static_cast<int32_t>(window)},
                     begins.mutable_data_ptr<int32_t>());
  return begins;
}

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def("advance(Tensor(a!) forest, Tensor sampled, int? row_limit=None, Tensor? header=None) -> ()");
  m.def("forest_reset(Tensor(a!) forest) -> ()");
  m.def("forest_schedule(Tensor(a!) forest) -> ()");
  m.def(
      "forest_admit(Tensor(a!) forest, int request, int prompt_length, int limit, int last_token, "
      "int shared_slot=-1) -> Tensor");
  m.def("forest_open_shared(Tensor(a!) forest, int length) -> Tensor");
  m.def("forest_close_shared(Tensor(a!) forest, int slot) -> ()");
  m.def("forest_join(Tensor(a!) forest, int parent, Tensor children) -> ()");
  m.def("forest_cancel(Tensor(a!) forest, int request) -> Tensor");
  m.def(
      "window_begins(Tensor row_indptr, Tensor row_position, Tensor range_stream, Tensor range_begin, "
      "Tensor range_end, Tensor first_position, int window) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) {
  m.impl("advance", TORCH_BOX(&apar::ops::advance));
  m.impl("forest_reset", TORCH_BOX(&apar::ops::forest_reset));
  m.impl("forest_schedule", TORCH_BOX(&apar::ops::forest_schedule));
  m.impl("forest_admit", TORCH_BOX(&apar::ops::forest_admit));
  m.impl("forest_open_shared", TORCH_BOX(&apar::ops::forest_open_shared));
  m.impl("forest_close_shared", TORCH_BOX(&apar::ops::forest_close_shared));
  m.impl("forest_join", TORCH_BOX(&apar::ops::forest_join));
  m.impl("forest_cancel", TORCH_BOX(&apar::ops::forest_cancel));
  m.impl("window_begins", TORCH_BOX(&apar::ops::window_begins));
}

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("advance", TORCH_BOX(&apar::ops::advance_cuda)); }
#endif
