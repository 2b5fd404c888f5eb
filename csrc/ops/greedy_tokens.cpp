// greedy_tokens: the most likely token of every row that the grammar allows.
#include "cpu/greedy_tokens.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <utility>

#include "ops/check.h"
#include "ops/torch_parallel.h"

namespace apar::ops {
namespace {

const Check check("greedy_tokens");

Tensor greedy_tokens_cpu(const Tensor& logits, const Tensor& may_fork, int64_t fork_token, int64_t child_token) {
  check.dtype("logits", logits, {ScalarType::Float, ScalarType::BFloat16});
  check.shape("logits", logits, {{"R"}, {"V"}});
  check.contiguous_last_dim("logits", logits);
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  check.that(vocabulary <= std::numeric_limits<int32_t>::max(), "logits has ", vocabulary,
             " columns, expected token ids of int32");
  check.index("may_fork", may_fork, {{"R", rows}}, "logits", logits);
  for (const auto& [name, token] : {std::pair{"fork_token", fork_token}, {"child_token", child_token}}) {
    check.that(token >= -1 && token < vocabulary, name, " is ", token,
               ", expected -1 (none) or 0 to V - 1 = ", vocabulary - 1);
  }
  Tensor tokens = torch::stable::new_empty(logits, {rows}, ScalarType::Int);
  cpu::greedy_tokens({.logits = logits.const_data_ptr(),
                      .may_fork = may_fork.const_data_ptr<int32_t>(),
                      .tokens = tokens.mutable_data_ptr<int32_t>(),
                      .rows = rows,
                      .columns = vocabulary,
                      .row_stride = logits.stride(0),
                      .is_bfloat16 = logits.scalar_type() == ScalarType::BFloat16,
                      .fork_token = fork_token,
                      .child_token = child_token},
                     torch_parallel_for);
  return tokens;
}

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def("greedy_tokens(Tensor logits, Tensor may_fork, int fork_token, int child_token) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("greedy_tokens", TORCH_BOX(&apar::ops::greedy_tokens_cpu)); }
