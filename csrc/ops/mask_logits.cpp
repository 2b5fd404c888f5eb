// mask_logits_: the grammar's static rules as -inf in the logits, in place.
#include "cpu/mask_logits.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/check.h"
#include "ops/torch_parallel.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/mask_logits/mask_logits.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check check("mask_logits_");

uint64_t minus_infinity_bits(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return 0xFC00u;
    case ScalarType::BFloat16:
      return 0xFF80u;
    case ScalarType::Float:
      return 0xFF800000u;
    default:
      return 0xFFF0000000000000u;
  }
}

MaskLogitsParams make_params(const Tensor& logits, const Tensor& may_fork, int64_t fork_token, int64_t child_token) {
  check.dtype("logits", logits, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  check.shape("logits", logits, {{"R"}, {"V"}});
  check.contiguous_last_dim("logits", logits);
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  check.index("may_fork", may_fork, {{"R", rows}}, "logits", logits);
  for (const auto& [name, token] : {std::pair{"fork_token", fork_token}, {"child_token", child_token}}) {
    check.that(token >= -1 && token < vocabulary, name, " is ", token,
               ", expected -1 (none) or 0 to V - 1 = ", vocabulary - 1);
  }
  return {.logits = logits.mutable_data_ptr(),
          .may_fork = may_fork.const_data_ptr<int32_t>(),
          .rows = rows,
          .row_stride = logits.stride(0),
          .element_bytes = static_cast<int64_t>(logits.element_size()),
          .minus_infinity = minus_infinity_bits(logits.scalar_type()),
          .fork_token = fork_token,
          .child_token = child_token};
}

void mask_logits_cpu(const Tensor& logits, const Tensor& may_fork, int64_t fork_token, int64_t child_token) {
  cpu::mask_logits(make_params(logits, may_fork, fork_token, child_token), torch_parallel_for);
}

#if defined(APAR_WITH_CUDA)
void mask_logits_cuda(const Tensor& logits, const Tensor& may_fork, int64_t fork_token, int64_t child_token) {
  cuda::mask_logits(make_params(logits, may_fork, fork_token, child_token), logits.get_device_index(),
                    current_cuda_stream(logits));
}
#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def("mask_logits_(Tensor(a!) logits, Tensor may_fork, int fork_token, int child_token) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("mask_logits_", TORCH_BOX(&apar::ops::mask_logits_cpu)); }

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("mask_logits_", TORCH_BOX(&apar::ops::mask_logits_cuda)); }
#endif
