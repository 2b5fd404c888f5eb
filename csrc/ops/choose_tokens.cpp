// greedy_tokens, sample_tokens: the next token of every row among those that the grammar allows; draw_numbers: the
// random numbers of a step.
#include "core/choose_tokens.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

#include "cpu/choose_tokens.h"
#include "ops/check.h"
#include "ops/torch_parallel.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/choose_tokens/choose_tokens.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check greedy_check("greedy_tokens");
const Check sample_check("sample_tokens");
const Check draw_check("draw_numbers");

LogitType logit_type(ScalarType dtype) {
  return dtype == ScalarType::Float  ? LogitType::kFloat32
         : dtype == ScalarType::Half ? LogitType::kFloat16
                                     : LogitType::kBFloat16;
}

LogitRows logit_rows(const Check& check, const Tensor& logits, const Tensor& may_fork, int64_t fork_token,
                     int64_t child_token) {
  check.dtype("logits", logits, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape("logits", logits, {{"R"}, {"V"}});
  check.contiguous_last_dim("logits", logits);
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  // Sums of so many weights still fit into 64 bits.
  constexpr int64_t kMostTokens = 1 << 23;
  check.that(vocabulary <= kMostTokens, "logits has ", vocabulary, " columns, expected at most ", kMostTokens);
  check.index("may_fork", may_fork, {{"R", rows}}, "logits", logits);
  for (const auto& [name, token] : {std::pair{"fork_token", fork_token}, {"child_token", child_token}}) {
    check.that(token >= -1 && token < vocabulary, name, " is ", token,
               ", expected -1 (none) or 0 to V - 1 = ", vocabulary - 1);
  }
  return {.logits = logits.const_data_ptr(),
          .may_fork = may_fork.const_data_ptr<int32_t>(),
          .rows = rows,
          .columns = vocabulary,
          .row_stride = logits.stride(0),
          .fork_token = fork_token,
          .child_token = child_token,
          .type = logit_type(logits.scalar_type())};
}

// ---- greedy_tokens

Tensor new_tokens(const Tensor& logits) { return torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Int); }

Tensor greedy_tokens_cpu(const Tensor& logits, const Tensor& may_fork, int64_t fork_token, int64_t child_token) {
  const LogitRows rows = logit_rows(greedy_check, logits, may_fork, fork_token, child_token);
  Tensor tokens = new_tokens(logits);
  cpu::greedy_tokens({.rows = rows, .tokens = tokens.mutable_data_ptr<int32_t>()}, torch_parallel_for);
  return tokens;
}

// ---- sample_tokens

SampleTokensParams sample_params(const Tensor& logits, const Tensor& may_fork, const Tensor& numbers,
                                 int64_t fork_token, int64_t child_token, double temperature, int64_t top_k,
                                 double top_p) {
  const Check& check = sample_check;
  SampleTokensParams params{};
  params.rows = logit_rows(check, logits, may_fork, fork_token, child_token);
  check.same_device("numbers", numbers, "logits", logits);
  check.dtype("numbers", numbers, {ScalarType::Long});
  check.shape("numbers", numbers, {{"R", params.rows.rows}});
  check.contiguous("numbers", numbers);
  check.that(std::isfinite(temperature) && temperature > 0, "temperature is ", temperature,
             ", expected a finite number over 0");
  check.that(top_k >= 0, "top_k is ", top_k, ", expected at least 0");
  check.that(top_p > 0 && top_p <= 1, "top_p is ", top_p, ", expected a number over 0 and up to 1");
  params.numbers = reinterpret_cast<const uint64_t*>(numbers.const_data_ptr<int64_t>());
  // Finite and over 0 in float32, too: at the limits one token or all of them have the whole weight.
  constexpr double kLog2E = 1.4426950408889634;
  params.factor = static_cast<float>(std::clamp(kLog2E / temperature, double{FLT_MIN}, double{FLT_MAX}));
  params.top_k = top_k;
  params.top_p = top_p < 1 ? std::max<uint64_t>(1, static_cast<uint64_t>(std::ldexp(top_p, 64))) : 0;
  return params;
}

Tensor sample_tokens_cpu(const Tensor& logits, const Tensor& may_fork, const Tensor& numbers, int64_t fork_token,
                         int64_t child_token, double temperature, int64_t top_k, double top_p) {
  SampleTokensParams params =
      sample_params(logits, may_fork, numbers, fork_token, child_token, temperature, top_k, top_p);
  Tensor tokens = new_tokens(logits);
  params.tokens = tokens.mutable_data_ptr<int32_t>();
  cpu::sample_tokens(params, torch_parallel_for);
  return tokens;
}

// ---- draw_numbers

DrawNumbersParams draw_params(const Tensor& keys, const Tensor& opened, const Tensor& num_opened, const Tensor& parent,
                              const Tensor& row_slot, const Tensor& row_position, const Tensor& numbers) {
  return {.keys = reinterpret_cast<uint64_t*>(keys.mutable_data_ptr<int64_t>()),
          .opened = opened.const_data_ptr<int32_t>(),
          .num_opened = num_opened.const_data_ptr<int32_t>(),
          .parent = parent.const_data_ptr<int32_t>(),
          .row_slot = row_slot.const_data_ptr<int32_t>(),
          .row_position = row_position.const_data_ptr<int32_t>(),
          .numbers = reinterpret_cast<uint64_t*>(numbers.mutable_data_ptr<int64_t>()),
          .slots = keys.numel(),
          .rows = row_slot.numel()};
}

Tensor new_numbers(const Tensor& keys, const Tensor& opened, const Tensor& num_opened, const Tensor& parent,
                   const Tensor& row_slot, const Tensor& row_position) {
  const Check& check = draw_check;
  check.dtype("keys", keys, {ScalarType::Long});
  check.shape("keys", keys, {{"S"}});
  check.contiguous("keys", keys);
  const int64_t slots = keys.numel();
  check.index("opened", opened, {{"S", slots}, {"6", 6}}, "keys", keys);
  check.index("num_opened", num_opened, {{"1", 1}}, "keys", keys);
  check.index("parent", parent, {{"S", slots}}, "keys", keys);
  check.index("row_slot", row_slot, {{"R"}}, "keys", keys);
  check.index("row_position", row_position, {{"R", row_slot.numel()}}, "keys", keys);
  return torch::stable::new_empty(keys, {row_slot.numel()});
}

void check_slot(const char* name, int64_t index, int64_t slot, int64_t least, int64_t slots) {
  draw_check.that(slot >= least && slot < slots, name, "[", index, "] is ", slot, ", expected ", least,
                  " to S - 1 = ", slots - 1);
}

Tensor draw_numbers_cpu(const Tensor& keys, const Tensor& opened, const Tensor& num_opened, const Tensor& parent,
                        const Tensor& row_slot, const Tensor& row_position) {
  Tensor numbers = new_numbers(keys, opened, num_opened, parent, row_slot, row_position);
  const DrawNumbersParams params = draw_params(keys, opened, num_opened, parent, row_slot, row_position, numbers);
  draw_check.that(*params.num_opened >= 0 && *params.num_opened <= params.slots, "num_opened is ", *params.num_opened,
                  ", expected 0 to S = ", params.slots);
  for (int64_t i = 0; i < *params.num_opened; ++i) {
    const int32_t slot = params.opened[6 * i];
    check_slot("opened", i, slot, 0, params.slots);
    check_slot("parent", slot, params.parent[slot], 0, params.slots);
  }
  for (int64_t row = 0; row < params.rows; ++row) check_slot("row_slot", row, params.row_slot[row], -1, params.slots);
  cpu::draw_numbers(params);
  return numbers;
}

#if defined(APAR_WITH_CUDA)

Tensor greedy_tokens_cuda(const Tensor& logits, const Tensor& may_fork, int64_t fork_token, int64_t child_token) {
  const LogitRows rows = logit_rows(greedy_check, logits, may_fork, fork_token, child_token);
  Tensor tokens = new_tokens(logits);
  cuda::greedy_tokens({.rows = rows, .tokens = tokens.mutable_data_ptr<int32_t>()}, logits.get_device_index(),
                      current_cuda_stream(logits));
  return tokens;
}

Tensor sample_tokens_cuda(const Tensor& logits, const Tensor& may_fork, const Tensor& numbers, int64_t fork_token,
                          int64_t child_token, double temperature, int64_t top_k, double top_p) {
  SampleTokensParams params =
      sample_params(logits, may_fork, numbers, fork_token, child_token, temperature, top_k, top_p);
  Tensor tokens = new_tokens(logits);
  params.tokens = tokens.mutable_data_ptr<int32_t>();
  cuda::sample_tokens(params, logits.get_device_index(), current_cuda_stream(logits));
  return tokens;
}

Tensor draw_numbers_cuda(const Tensor& keys, const Tensor& opened, const Tensor& num_opened, const Tensor& parent,
                         const Tensor& row_slot, const Tensor& row_position) {
  Tensor numbers = new_numbers(keys, opened, num_opened, parent, row_slot, row_position);
  cuda::draw_numbers(draw_params(keys, opened, num_opened, parent, row_slot, row_position, numbers),
                     keys.get_device_index(), current_cuda_stream(keys));
  return numbers;
}

#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def("greedy_tokens(Tensor logits, Tensor may_fork, int fork_token, int child_token) -> Tensor");
  m.def(
      "sample_tokens(Tensor logits, Tensor may_fork, Tensor numbers, int fork_token, int child_token, "
      "float temperature, int top_k, float top_p) -> Tensor");
  m.def(
      "draw_numbers(Tensor(a!) keys, Tensor opened, Tensor num_opened, Tensor parent, Tensor row_slot, "
      "Tensor row_position) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) {
  m.impl("greedy_tokens", TORCH_BOX(&apar::ops::greedy_tokens_cpu));
  m.impl("sample_tokens", TORCH_BOX(&apar::ops::sample_tokens_cpu));
  m.impl("draw_numbers", TORCH_BOX(&apar::ops::draw_numbers_cpu));
}

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) {
  m.impl("greedy_tokens", TORCH_BOX(&apar::ops::greedy_tokens_cuda));
  m.impl("sample_tokens", TORCH_BOX(&apar::ops::sample_tokens_cuda));
  m.impl("draw_numbers", TORCH_BOX(&apar::ops::draw_numbers_cuda));
}
#endif
