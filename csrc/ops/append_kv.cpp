// append_kv: writes the keys and values of new tokens into the paged cache.
#include "core/append_kv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <utility>

#include "cpu/append_kv.h"
#include "ops/check.h"
#include "ops/scale_check.h"
#include "ops/torch_parallel.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/append_kv/append_kv.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check check("append_kv");

// fp8 caches take keys and values of a wider type; all others their own alone.
KvConversion conversion_of(const Tensor& k, const Tensor& k_cache) {
  if (k.scalar_type() == k_cache.scalar_type() || k_cache.scalar_type() != ScalarType::Float8_e4m3fn) {
    check.same_dtype("k_cache", k_cache, "k", k);
    return KvConversion::kNone;
  }
  check.dtype("k", k, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  return k.scalar_type() == ScalarType::Float  ? KvConversion::kFloat32ToE4m3
         : k.scalar_type() == ScalarType::Half ? KvConversion::kFloat16ToE4m3
                                               : KvConversion::kBFloat16ToE4m3;
}

// Checks everything that can be seen without reading tensor data.
AppendKvParams make_params(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                           const Tensor& slots, const std::optional<Tensor>& k_scale,
                           const std::optional<Tensor>& v_scale) {
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
  }
  check.same_dtype("v", v, "k", k);
  const KvConversion conversion = conversion_of(k, k_cache);
  check.same_dtype("v_cache", v_cache, "k_cache", k_cache);
  for (const auto& [name, scale] :
       {std::pair<const char*, const std::optional<Tensor>&>{"k_scale", k_scale}, {"v_scale", v_scale}}) {
    if (!scale.has_value()) continue;
    check.that(conversion != KvConversion::kNone, name, " is given for k of dtype ", dtype_name(k.scalar_type()),
               " and k_cache of dtype ", dtype_name(k_cache.scalar_type()),
               ", expected None where nothing is converted to fp8");
    check_kv_scale(check, name, *scale, num_kv_heads, "k", k);
  }
  check.index("slots", slots, {{"R", rows}}, "k", k);
  check.contiguous_last_dim("k", k);
  check.contiguous_last_dim("v", v);
  check.contiguous("k_cache", k_cache);
  check.contiguous("v_cache", v_cache);

  const int64_t element_bytes = static_cast<int64_t>(k.element_size());
  const auto scales = [](const std::optional<Tensor>& scale) {
    return scale.has_value() ? scale->const_data_ptr<float>() : nullptr;
  };
  return {
      .k = static_cast<const char*>(k.const_data_ptr()),
      .v = static_cast<const char*>(v.const_data_ptr()),
      .k_cache = static_cast<char*>(k_cache.mutable_data_ptr()),
      .v_cache = static_cast<char*>(v_cache.mutable_data_ptr()),
      .slots = slots.const_data_ptr<int32_t>(),
      .report = nullptr,
      .k_scale = scales(k_scale),
      .v_scale = scales(v_scale),
      .rows = rows,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .num_slots = num_pages * page_size,
      .page_size = page_size,
      .head_bytes = head_dim * static_cast<int64_t>(k_cache.element_size()),
      .k_row_stride_bytes = k.stride(0) * element_bytes,
      .k_head_stride_bytes = k.stride(1) * element_bytes,
      .v_row_stride_bytes = v.stride(0) * element_bytes,
      .v_head_stride_bytes = v.stride(1) * element_bytes,
      .conversion = conversion,
  };
}

void append_kv_cpu(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache, const Tensor& slots,
                   std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  const AppendKvParams params = make_params(k, v, k_cache, v_cache, slots, k_scale, v_scale);
  const int64_t bad_row = cpu::find_bad_slot(params.slots, params.rows, params.num_slots);
  if (bad_row >= 0) {
    check.fail("slots[", bad_row, "] is ", params.slots[bad_row],
               ", expected -1 or 0 to num_pages * page_size - 1 = ", params.num_slots - 1);
  }
  check_scale_values(check, "k_scale", params.k_scale, params.num_kv_heads);
  check_scale_values(check, "v_scale", params.v_scale, params.num_kv_heads);
  cpu::append_kv(params, torch_parallel_for);
}

#if defined(APAR_WITH_CUDA)
void append_kv_cuda(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache, const Tensor& slots,
                    std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  const AppendKvParams params = make_params(k, v, k_cache, v_cache, slots, k_scale, v_scale);
  cuda::append_kv(params, k.get_device_index(), current_cuda_stream(k));
}
#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def(
      "append_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, Tensor? k_scale=None, "
      "Tensor? v_scale=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("append_kv", TORCH_BOX(&apar::ops::append_kv_cpu)); }

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("append_kv", TORCH_BOX(&apar::ops::append_kv_cuda)); }
#endif
