// Checks of tree_attention that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <utility>

#include "ops/check.h"
#include "ops/plan_check.h"
#include "ops/scale_check.h"

namespace apar::ops {

struct AttentionSizes {
  int64_t rows, num_q_heads, num_kv_heads, num_pages, page_size, head_dim;
};

// Everything that can be seen without reading tensor data.
inline AttentionSizes check_attention(const Check& check, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                      const Tensor& page_table, const Tensor& schedule, double scale, double softcap,
                                      const std::optional<Tensor>& sinks, const std::optional<Tensor>& k_scale,
                                      const std::optional<Tensor>& v_scale) {
  check.dtype("q", q, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape("q", q, {{"R"}, {"Hq"}, {"D"}});
  check.contiguous_last_dim("q", q);
  const int64_t rows = q.size(0), num_q_heads = q.size(1), head_dim = q.size(2);
  check.shape("k_cache", k_cache, {{"num_pages"}, {"Hkv"}, {"page_size"}, {"D"}});
  const int64_t num_pages = k_cache.size(0), num_kv_heads = k_cache.size(1), page_size = k_cache.size(2);
  check_head_dim(check, "k_cache", k_cache.size(3));
  check.that(head_dim == k_cache.size(3), "q has head_dim ", head_dim, ", expected ", k_cache.size(3),
             " as k_cache has");
  check.shape("v_cache", v_cache,
              {{"num_pages", num_pages}, {"Hkv", num_kv_heads}, {"page_size", page_size}, {"D", head_dim}});
  check_page_size(check, "page_size of k_cache", page_size);
  check.that(num_kv_heads >= 1, "k_cache has ", num_kv_heads, " KV heads, expected at least 1");
  check.that(num_q_heads >= 1 && num_q_heads % num_kv_heads == 0, "q has ", num_q_heads,
             " heads, expected a multiple of the ", num_kv_heads, " KV heads of k_cache");
  check_heads(check, num_kv_heads, num_q_heads / num_kv_heads);
  for (const auto& [name, tensor] : {std::pair<const char*, const Tensor&>{"k_cache", k_cache}, {"v_cache", v_cache}}) {
    check.same_device(name, tensor, "q", q);
    check.contiguous(name, tensor);
  }
  const bool is_float8 = k_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  if (!is_float8) check.same_dtype("k_cache", k_cache, "q", q);
  check.same_dtype("v_cache", v_cache, "k_cache", k_cache);
  for (const auto& [name, kv_scale] :
       {std::pair<const char*, const std::optional<Tensor>&>{"k_scale", k_scale}, {"v_scale", v_scale}}) {
    if (!kv_scale.has_value()) continue;
    check.that(is_float8, name, " is given for caches of dtype ", dtype_name(k_cache.scalar_type()),
               ", expected None but for fp8 caches");
    check_kv_scale(check, name, *kv_scale, num_kv_heads, "q", q);
  }
  check.index("page_table", page_table, {{"S"}, {"max_pages"}}, "q", q);
  check.index("schedule", schedule, {{"size"}}, "q", q);
  if (sinks.has_value()) {
    check.same_device("sinks", *sinks, "q", q);
    check.shape("sinks", *sinks, {{"Hq", num_q_heads}});
    if (sinks->scalar_type() != q.scalar_type()) check.dtype("sinks", *sinks, {ScalarType::Float, q.scalar_type()});
    check.contiguous("sinks", *sinks);
  }
  check.that(std::isfinite(static_cast<float>(scale)), "scale is ", scale, ", expected a finite number");
  check.that(std::isfinite(static_cast<float>(softcap)) && softcap >= 0, "softcap is ", softcap,
             ", expected a finite number of at least 0 (0: off)");
  return {rows, num_q_heads, num_kv_heads, num_pages, page_size, head_dim};
}

}  // namespace apar::ops
