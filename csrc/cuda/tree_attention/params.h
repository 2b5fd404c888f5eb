// What tree_attention is told: plain pointers, sizes in elements.
#pragma once

#include <cstdint>

#include "core/device_report.h"
#include "core/work.h"

namespace apar::cuda {

enum class Element { kFloat32, kFloat16, kBFloat16, kFloat8 };

struct TreeAttentionParams {
  const void* q;        // [R, Hq, D], last dimension contiguous, strides below
  const void* k_cache;  // [num_pages, Hkv, page_size, D], contiguous
  const void* v_cache;
  void* out;             // [R, Hq, D], contiguous
  float* lse;            // [R, Hq] or null
  const float* sinks;    // [Hq] or null
  const float* k_scale;  // [Hkv] or null: 1; what stored keys and values are multiplied with
  const float* v_scale;

  const int32_t* page_table;  // [S, max_pages]
  const WorkHeader* work;     // the work list (core/work.h) and its sections
  const int32_t* bin_begin;
  const RowRange* row_ranges;
  const int32_t* row_begin;
  const WorkItem* items;
  int32_t* arrivals;  // [target_items, parts, Hkv], zero before and after every launch

  // Parts: see arguments.cuh. Of one strip of 16 packed rows and head: outputs, then maxima, then sums.
  float* partials;         // [max_partials, Hkv, 16 * (D + 2)]
  int32_t* segments_used;  // [max items, parts, Hkv]
  DeviceReport* report;    // where page ids out of range are told of

  int64_t q_row_stride;
  int64_t q_head_stride;
  int64_t num_pages;
  int32_t num_rows;
  int32_t num_kv_heads;
  int32_t group_size;
  int32_t head_dim;
  int32_t page_size;  // a power of two, 8 to 128
  int32_t max_pages;
  float scale;
  float softcap;  // 0: none
};

}  // namespace apar::cuda
