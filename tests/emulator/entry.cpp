// What Python calls (emulator.py), with C linkage. Calls return an empty string or what went wrong.
#include <cstdint>
#include <cstring>
#include <string>

#include "core/append_kv.h"
#include "core/forest_layout.h"
#include "core/plan.h"
#include "core/work.h"
#include "cuda/advance/advance.h"
#include "cuda/append_kv/append_kv.h"
#include "cuda/choose_tokens/choose_tokens.h"
#include "cuda/make_plan/make_plan.h"
#include "cuda/mask_logits/mask_logits.h"
#include "cuda/tree_attention/tree_attention.h"
#include "faulty_kernels.h"
#include "machine.h"

#define APAR_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::string last_text;

template <typename Body>
const char* guarded(Body&& body) {
  last_text.clear();
  try {
    body();
  } catch (const std::exception& error) {
    last_text = error.what();
    if (last_text.empty()) last_text = "failed without a word";
  }
  return last_text.c_str();
}

}  // namespace

using apar::emulator::machine;

APAR_EXPORT void emulator_reset() {
  machine().clear_tensors();
  machine().settings = {};
  machine().counters = {};
  machine().report = {};
  machine().sites.clear();
}
APAR_EXPORT void emulator_settings(int multiprocessors, int resident_blocks, int shared_bytes, uint64_t seed,
                                   int compute_capability) {
  machine().settings.multiprocessors = multiprocessors;
  machine().settings.resident_blocks = resident_blocks;
  machine().settings.shared_bytes = shared_bytes;
  machine().settings.seed = seed;
  machine().settings.compute_capability = compute_capability;
}
APAR_EXPORT void emulator_drop(const char* site) { machine().settings.dropped_sites.insert(site); }
APAR_EXPORT void emulator_shift(const char* tensor, int by) {
  machine().settings.shifted_tensor = tensor;
  machine().settings.shift = by;
}
APAR_EXPORT uint64_t emulator_tensor(const char* name, void* data, int64_t bytes, int writable) {
  return machine().add_tensor(name, data, bytes, writable != 0);
}
APAR_EXPORT int64_t emulator_bytes_read(const char* name) { return machine().tensor(name).bytes_read; }
APAR_EXPORT int64_t emulator_bytes_written(const char* name) { return machine().tensor(name).bytes_written; }
APAR_EXPORT const char* emulator_sites() {
  last_text.clear();
  for (const std::string& site : machine().sites) last_text += site + "\n";
  return last_text.c_str();
}
APAR_EXPORT const char* emulator_report() {
  last_text = apar::report_text(machine().report);
  return last_text.c_str();
}
APAR_EXPORT void emulator_counters(apar::emulator::Counters* counters) { *counters = machine().counters; }

// ---- operators

APAR_EXPORT const char* emulate_append_kv(const apar::AppendKvParams* params) {
  return guarded([&] { apar::cuda::append_kv(*params, 0, nullptr); });
}

APAR_EXPORT const char* emulate_mask_logits(const apar::MaskLogitsParams* params) {
  return guarded([&] { apar::cuda::mask_logits(*params, 0, nullptr); });
}

APAR_EXPORT const char* emulate_greedy_tokens(const apar::GreedyTokensParams* params) {
  return guarded([&] { apar::cuda::greedy_tokens(*params, 0, nullptr); });
}
APAR_EXPORT const char* emulate_sample_tokens(const apar::SampleTokensParams* params) {
  return guarded([&] { apar::cuda::sample_tokens(*params, 0, nullptr); });
}
APAR_EXPORT const char* emulate_draw_numbers(const apar::DrawNumbersParams* params) {
  return guarded([&] { apar::cuda::draw_numbers(*params, 0, nullptr); });
}

// `forest` is what a kernel knows the tensor by, `data` where it lies; `scratch` is large enough for any step.
APAR_EXPORT int64_t advance_scratch_ints(const int32_t* data) {
  return apar::cuda::advance_scratch_ints(reinterpret_cast<const apar::ForestHeader*>(data)->config, 0);
}
APAR_EXPORT const char* emulate_advance(int32_t* forest, const int32_t* data, const int32_t* sampled,
                                        int32_t num_sampled, int32_t row_limit, int32_t* scratch, int32_t threads) {
  return guarded([&] {
    const apar::ForestConfig config = reinterpret_cast<const apar::ForestHeader*>(data)->config;
    apar::cuda::advance({.forest = apar::forest_view(forest, config),
                         .sampled = sampled,
                         .num_sampled = num_sampled,
                         .row_limit = row_limit,
                         .scratch = scratch,
                         .threads = threads},
                        0, nullptr);
  });
}

// `input` holds what a kernel knows the tensors by, and so do `begins`, `schedules` and `works`, one per plan.
APAR_EXPORT int64_t make_plan_scratch_ints(const apar::PlanInput* input, const apar::WorkInput* work_input) {
  return apar::cuda::make_plan_scratch_ints(*input, *work_input, 0);
}
APAR_EXPORT const char* emulate_make_plan(const apar::PlanInput* input, const int32_t* row_position,
                                          const int32_t* first_position, const apar::WorkInput* work_input,
                                          int32_t num_plans, const int32_t* windows, int32_t* const* begins,
                                          int32_t* const* schedules, int32_t* const* works, int32_t* scratch,
                                          int32_t check, int32_t threads) {
  return guarded([&] {
    apar::cuda::MakePlanParams params{.input = *input,
                                      .row_position = row_position,
                                      .first_position = first_position,
                                      .plans = {},
                                      .num_plans = num_plans,
                                      .work_input = *work_input,
                                      .rows_in_use = nullptr,
                                      .scratch = scratch,
                                      .check = check != 0,
                                      .threads = threads};
    for (int32_t i = 0; i < num_plans; ++i) params.plans[i] = {windows[i], begins[i], schedules[i], works[i]};
    apar::cuda::make_plan(params, 0, nullptr);
  });
}

// The plan and the work list of ranges in host memory; `schedule` and `work` are large enough if their sizes are
// given by the two functions below.
APAR_EXPORT int64_t plan_ints(int64_t num_rows, int64_t num_ranges) {
  return apar::schedule_size(num_rows, num_ranges);
}
APAR_EXPORT int64_t work_ints(int64_t num_rows, int64_t num_ranges, int64_t num_kv_heads, int64_t group_size,
                              const apar::WorkInput* input) {
  return apar::work_size(num_rows, num_ranges, num_kv_heads, group_size, *input);
}
APAR_EXPORT int64_t work_items(int64_t num_rows, int64_t group_size, const apar::WorkInput* input) {
  return apar::max_work_items(num_rows, group_size, *input);
}
APAR_EXPORT void make_plan_and_work(const apar::PlanInput* plan, const apar::WorkInput* input, int32_t* schedule,
                                    int32_t* work) {
  apar::write_plan(*plan, schedule);
  apar::write_work(schedule, *input, work);
}

struct TreeAttentionCall {
  apar::cuda::TreeAttentionParams params;  // without the sections of the work list
  int32_t* work;
  apar::WorkInput input;
  int32_t element;
  int32_t kv_element;
};
APAR_EXPORT int64_t tree_attention_call_bytes() { return sizeof(TreeAttentionCall); }

APAR_EXPORT const char* emulate_tree_attention(const TreeAttentionCall* call) {
  return guarded([&] {
    apar::cuda::tree_attention(call->params, static_cast<apar::cuda::Element>(call->element),
                               static_cast<apar::cuda::Element>(call->kv_element), call->work, call->input, 0, nullptr);
  });
}
APAR_EXPORT void work_input_for(int64_t num_rows, int64_t num_kv_heads, int64_t group_size, int64_t multiprocessors,
                                apar::WorkInput* input) {
  *input = apar::work_input_for(num_rows, num_kv_heads, group_size, multiprocessors);
}

// ---- kernels with faults, to see that the emulator finds them

APAR_EXPORT const char* emulate_faulty(const char* name, const int32_t* input, int32_t* output, int32_t* counter) {
  return guarded([&] { apar::emulator::run_faulty(name, input, output, counter); });
}
