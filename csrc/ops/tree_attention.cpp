// tree_attention: attention of packed rows over ranges of paged streams, following a plan.
#include "cpu/tree_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <tuple>
#include <vector>

#include "core/plan.h"
#include "ops/attention_check.h"
#include "ops/check.h"
#include "ops/torch_parallel.h"

namespace apar::ops {
namespace {

const Check check("tree_attention");

// The plan was made for these very sizes.
void check_schedule(const Tensor& schedule, const Tensor& page_table, const AttentionSizes& sizes) {
  constexpr int64_t kHeaderSize = sizeof(PlanHeader) / sizeof(int32_t);
  check.that(schedule.size(0) >= kHeaderSize, "schedule has ", schedule.size(0),
             " numbers, expected what make_plan returns");
  const PlanHeader& header = *reinterpret_cast<const PlanHeader*>(schedule.const_data_ptr<int32_t>());
  check.that(header.magic == kPlanMagic && header.num_rows >= 0 && header.num_ranges >= 0 &&
                 schedule.size(0) >= schedule_size(header.num_rows, header.num_ranges),
             "schedule is not one, expected what make_plan returns");
  const auto same = [](const char* what, int64_t planned, const char* where, int64_t found) {
    check.that(planned == found, "plan was made for ", what, " ", planned, ", expected ", found, " as ", where, " has");
  };
  same("rows R =", header.num_rows, "q", sizes.rows);
  same("num_kv_heads", header.num_kv_heads, "k_cache", sizes.num_kv_heads);
  same("page_size", header.page_size, "k_cache", sizes.page_size);
  const int64_t group_size = sizes.num_q_heads / sizes.num_kv_heads;
  check.that(header.group_size == group_size, "plan was made for group_size ", header.group_size,
             ", expected Hq / Hkv = ", group_size);
  same("a page_table of S =", header.num_streams, "page_table", page_table.size(0));
  same("a page_table of max_pages =", header.max_pages, "page_table", page_table.size(1));
  // Not by the header's max_page alone: the table may have changed since the plan was made.
  int32_t max_page = -1;
  const PlanFault fault =
      find_pages(schedule.const_data_ptr<int32_t>(), page_table.const_data_ptr<int32_t>(), max_page);
  const int64_t page = fault.kind == PlanFault::kNone ? max_page : fault.value;
  check.that(fault.kind == PlanFault::kNone && page < sizes.num_pages, "page_table has page id ", page,
             " in a range, expected 0 to num_pages - 1 = ", sizes.num_pages - 1);
}

template <class T>
std::vector<float> as_float(const Tensor& tensor) {
  const T* data = static_cast<const T*>(tensor.const_data_ptr());
  return {data, data + tensor.size(0)};
}

std::vector<float> sinks_as_float(const Tensor& sinks) {
  switch (sinks.scalar_type()) {
    case ScalarType::Half:
      return as_float<torch::headeronly::Half>(sinks);
    case ScalarType::BFloat16:
      return as_float<torch::headeronly::BFloat16>(sinks);
    default:
      return as_float<float>(sinks);
  }
}

cpu::ElementType element_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return cpu::ElementType::kFloat16;
    case ScalarType::BFloat16:
      return cpu::ElementType::kBFloat16;
    case ScalarType::Float8_e4m3fn:
      return cpu::ElementType::kFloat8;
    default:
      return cpu::ElementType::kFloat32;
  }
}

std::tuple<Tensor, Tensor> tree_attention_cpu(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                              const Tensor& page_table, const Tensor& schedule, double scale,
                                              double softcap, std::optional<Tensor> sinks, bool return_lse,
                                              std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  const AttentionSizes sizes =
      check_attention(check, q, k_cache, v_cache, page_table, schedule, scale, softcap, sinks, k_scale, v_scale);
  check_schedule(schedule, page_table, sizes);
  const auto scales = [&sizes](const char* name, const std::optional<Tensor>& kv_scale) -> const float* {
    if (!kv_scale.has_value()) return nullptr;
    check_scale_values(check, name, kv_scale->const_data_ptr<float>(), sizes.num_kv_heads);
    return kv_scale->const_data_ptr<float>();
  };

  const std::vector<float> sink_values = sinks.has_value() ? sinks_as_float(*sinks) : std::vector<float>();
  Tensor out = torch::stable::new_empty(q, {sizes.rows, sizes.num_q_heads, sizes.head_dim});
  Tensor lse = return_lse ? torch::stable::new_empty(q, {sizes.rows, sizes.num_q_heads}, ScalarType::Float)
                          : torch::stable::new_empty(q, {0}, ScalarType::Float);
  cpu::TreeAttentionParams params = {.q = q.const_data_ptr(),
                                     .k_cache = k_cache.const_data_ptr(),
                                     .v_cache = v_cache.const_data_ptr(),
                                     .page_table = page_table.const_data_ptr<int32_t>(),
                                     .schedule = schedule.const_data_ptr<int32_t>(),
                                     .sinks = sinks.has_value() ? sink_values.data() : nullptr,
                                     .out = out.mutable_data_ptr(),
                                     .lse = return_lse ? lse.mutable_data_ptr<float>() : nullptr,
                                     .q_row_stride = q.stride(0),
                                     .q_head_stride = q.stride(1),
                                     .type = element_type(q.scalar_type()),
                                     .kv_type = element_type(k_cache.scalar_type()),
                                     .k_scale = scales("k_scale", k_scale),
                                     .v_scale = scales("v_scale", v_scale),
                                     .head_dim = static_cast<int32_t>(sizes.head_dim),
                                     .scale = static_cast<float>(scale),
                                     .softcap = static_cast<float>(softcap),
                                     .level = cpu::cpu_level(),
                                     .num_threads = static_cast<int32_t>(torch::stable::get_num_threads())};
  cpu::tree_attention(params, torch_parallel_for);
  return {out, lse};
}

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def(
      "tree_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, Tensor schedule, float scale, "
      "float softcap, Tensor? sinks, bool return_lse, Tensor? k_scale=None, Tensor? v_scale=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("tree_attention", TORCH_BOX(&apar::ops::tree_attention_cpu)); }
