// append_kv: writes the keys and values of new tokens into the paged cache.
#include "core/append_kv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/append_kv.h"
#include "ops/check.h"
#include "ops/torch_parallel.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/append_kv/append_kv.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check check("append_kv");

// Checks everything that can be seen without reading tensor data.
AppendKvParams make_params(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                           const Tensor& slots) {
  check.shape("k", k, {{"R"}, {"Hkv"}, {"D"}});
  const int64_t rows = k.size(0), num_kv_heads = k.size(1), head_dim = k.size(2);
  check.shape("v", v, {{"R", rows}, {"Hkv", num_kv_heads}, {"D", head_dim}});
  check.shape("k_cache", k_cache, {{"num_pages"}, {"Hkv", num_kv_heads}, {"page_size"}, {"D", head_dim}});
  const int64_t num_pages = k_cache.size(0), page_size = k_cache.size(2);
  check.shape("v_cache", v_cache,
              {{"num_pages", num_pages}, {"Hkv", num_kv_heads}, {"page_size", page_size}, {"D", head_dim}});
  for (const auto& [name, tensor] :
       {std::pair<const char*, const Tensor&>{"v", v}, {"k_cache", k_cache}, {"v_cache", v_cache}}) {
    check.same_device(name, tensor, "k", k);
    check.same_dtype(name, tensor, "k", k);
  }
  check.index("slots", slots, {{"R", rows}}, "k", k);
  check.contiguous_last_dim("k", k);
  check.contiguous_last_dim("v", v);
  check.contiguous("k_cache", k_cache);
  check.contiguous("v_cache", v_cache);

  const int64_t element_bytes = static_cast<int64_t>(k.element_size());
  return {
      .k = static_cast<const char*>(k.const_data_ptr()),
      .v = static_cast<const char*>(v.const_data_ptr()),
      .k_cache = static_cast<char*>(k_cache.mutable_data_ptr()),
      .v_cache = static_cast<char*>(v_cache.mutable_data_ptr()),
      .slots = slots.const_data_ptr<int32_t>(),
      .rows = rows,
      .num_kv_heads = num_kv_heads,
      .num_slots = num_pages * page_size,
      .page_size = page_size,
      .head_bytes = head_dim * element_bytes,
      .k_row_stride_bytes = k.stride(0) * element_bytes,
      .k_head_stride_bytes = k.stride(1) * element_bytes,
      .v_row_stride_bytes = v.stride(0) * element_bytes,
      .v_head_stride_bytes = v.stride(1) * element_bytes,
  };
}

void append_kv_cpu(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                   const Tensor& slots) {
  const AppendKvParams params = make_params(k, v, k_cache, v_cache, slots);
  const int64_t bad_row = cpu::find_bad_slot(params.slots, params.rows, params.num_slots);
  if (bad_row >= 0) {
    check.fail("slots[", bad_row, "] is ", params.slots[bad_row],
               ", expected -1 or 0 to num_pages * page_size - 1 = ", params.num_slots - 1);
  }
  cpu::append_kv(params, torch_parallel_for);
}

#if defined(APAR_WITH_CUDA)
void append_kv_cuda(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                    const Tensor& slots) {
  const AppendKvParams params = make_params(k, v, k_cache, v_cache, slots);
  cuda::append_kv(params, k.get_device_index(), current_cuda_stream(k));
}
#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def("append_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("append_kv", TORCH_BOX(&apar::ops::append_kv_cpu)); }

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("append_kv", TORCH_BOX(&apar::ops::append_kv_cuda)); }
#endif
