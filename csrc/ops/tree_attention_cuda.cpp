// tree_attention on a CUDA device, and the work list that its plans carry there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "core/plan.h"
#include "core/work.h"
#include "ops/attention_check.h"
#include "ops/check.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/tree_attention/tree_attention.h"
#include "ops/cuda_stream.h"
#endif

namespace apar::ops {
namespace {

const Check work_check("make_work");

// The work list of a plan, both in host memory, for a device with so many multiprocessors.
Tensor make_work(const Tensor& schedule, int64_t multiprocessors, bool batch_invariant) {
  work_check.index("schedule", schedule, {{"size"}}, "schedule", schedule);
  work_check.that(schedule.size(0) >= static_cast<int64_t>(sizeof(PlanHeader) / sizeof(int32_t)),
                  "schedule is not one, expected what make_plan returns");
  const int32_t* plan = schedule.const_data_ptr<int32_t>();
  const PlanHeader& header = *reinterpret_cast<const PlanHeader*>(plan);
  work_check.that(header.magic == kPlanMagic, "schedule is not one, expected what make_plan returns");
  work_check.that(multiprocessors >= 1, "multiprocessors is ", multiprocessors, ", expected at least 1");
  const WorkInput input =
      work_input_for(header.num_rows, header.num_kv_heads, header.group_size, multiprocessors, batch_invariant);
  // Zeros where nothing is written: the same plan always gives the same tensor.
  Tensor work = torch::stable::new_zeros(
      schedule, {work_size(header.num_rows, header.num_ranges, header.num_kv_heads, header.group_size, input)});
  write_work(plan, input, work.mutable_data_ptr<int32_t>());
  return work;
}

#if defined(APAR_WITH_CUDA)

const Check check("tree_attention");

cuda::Element element_of(ScalarType dtype) {
  return dtype == ScalarType::Float           ? cuda::Element::kFloat32
         : dtype == ScalarType::Half          ? cuda::Element::kFloat16
         : dtype == ScalarType::Float8_e4m3fn ? cuda::Element::kFloat8
                                              : cuda::Element::kBFloat16;
}

// Keys and queries move 16 bytes at a time.
Tensor aligned_queries(const Tensor& q) {
  const int64_t bytes = static_cast<int64_t>(q.element_size());
  const bool aligned = reinterpret_cast<uintptr_t>(q.const_data_ptr()) % 16 == 0 && q.stride(0) * bytes % 16 == 0 &&
                       q.stride(1) * bytes % 16 == 0;
  if (aligned) return q;
  Tensor copy = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  torch::stable::copy_(copy, q);
  return copy;
}

std::tuple<Tensor, Tensor> tree_attention_cuda(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                               const Tensor& page_table, const Tensor& work, double scale,
                                               double softcap, std::optional<Tensor> sinks, bool return_lse,
                                               std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  const AttentionSizes sizes =
      check_attention(check, q, k_cache, v_cache, page_table, work, scale, softcap, sinks, k_scale, v_scale);
  const int64_t group_size = sizes.num_q_heads / sizes.num_kv_heads;
  const int32_t device = q.get_device_index();
  const cuda::Element element = element_of(q.scalar_type());
  const WorkInput input = work_input_for(sizes.rows, sizes.num_kv_heads, group_size, cuda::multiprocessors_of(device));
  // How many ranges there are is known on the device alone; everything else has to fit.
  const WorkLayout layout = work_layout(sizes.rows, sizes.num_kv_heads, group_size, input);
  check.that(work.size(0) >= layout.row_ranges && (work.size(0) - layout.row_ranges) % 4 == 0, "plan has ",
             work.size(0), " numbers, expected a plan for ", sizes.rows, " rows, ", sizes.num_kv_heads,
             " KV heads and groups of ", group_size);

  const Tensor queries = aligned_queries(q);
  Tensor out = torch::stable::new_empty(q, {sizes.rows, sizes.num_q_heads, sizes.head_dim});
  Tensor lse = return_lse ? torch::stable::new_empty(q, {sizes.rows, sizes.num_q_heads}, ScalarType::Float)
                          : torch::stable::new_empty(q, {0}, ScalarType::Float);
  Tensor partials = torch::stable::new_empty(
      q, {input.max_partials, sizes.num_kv_heads, kStripRows * (sizes.head_dim + 2)}, ScalarType::Float);
  Tensor segments_used = torch::stable::new_empty(
      q, {max_work_items(sizes.rows, group_size, input), kMaxParts, sizes.num_kv_heads}, ScalarType::Int);
  std::optional<Tensor> sink_values;
  if (sinks.has_value()) {
    sink_values = torch::stable::new_empty(q, {sizes.num_q_heads}, ScalarType::Float);
    torch::stable::copy_(*sink_values, *sinks);
  }
  cuda::TreeAttentionParams params{};
  params.q = queries.const_data_ptr();
  params.k_cache = k_cache.const_data_ptr();
  params.v_cache = v_cache.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.lse = return_lse ? lse.mutable_data_ptr<float>() : nullptr;
  params.sinks = sink_values.has_value() ? sink_values->const_data_ptr<float>() : nullptr;
  params.k_scale = k_scale.has_value() ? k_scale->const_data_ptr<float>() : nullptr;
  params.v_scale = v_scale.has_value() ? v_scale->const_data_ptr<float>() : nullptr;
  params.page_table = page_table.const_data_ptr<int32_t>();
  params.partials = partials.mutable_data_ptr<float>();
  params.segments_used = segments_used.mutable_data_ptr<int32_t>();
  params.q_row_stride = queries.stride(0);
  params.q_head_stride = queries.stride(1);
  params.num_pages = k_cache.size(0);
  params.num_rows = static_cast<int32_t>(sizes.rows);
  params.num_kv_heads = static_cast<int32_t>(sizes.num_kv_heads);
  params.group_size = static_cast<int32_t>(group_size);
  params.head_dim = static_cast<int32_t>(sizes.head_dim);
  params.page_size = static_cast<int32_t>(sizes.page_size);
  params.max_pages = static_cast<int32_t>(page_table.size(1));
  params.scale = static_cast<float>(scale);
  params.softcap = static_cast<float>(softcap);
  // The arrivals in the work list are counted up and back to zero: between launches it never changes.
  cuda::tree_attention(params, element, element_of(k_cache.scalar_type()),
                       const_cast<int32_t*>(work.const_data_ptr<int32_t>()), input, device, current_cuda_stream(q));
  return {out, lse};
}

#endif

}  // namespace
}  // namespace apar::ops

STABLE_TORCH_LIBRARY_FRAGMENT(apar, m) {
  m.def("make_work(Tensor schedule, int multiprocessors, bool batch_invariant=True) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(apar, CPU, m) { m.impl("make_work", TORCH_BOX(&apar::ops::make_work)); }

#if defined(APAR_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(apar, CUDA, m) { m.impl("tree_attention", TORCH_BOX(&apar::ops::tree_attention_cuda)); }
#endif
