// Attention of packed rows over ranges of paged streams, following a plan (core/plan.h).
//
// The result of a row is defined by its own query and range list alone: a left fold over its *segments* in the order of
// its ranges. A segment is one range cut at multiples of kSegmentEntries of the stream; within a segment, blocks of
// kBlockEntries entries, aligned to the start of the stream, go through online softmax in fp32. Neither the tile a row
// landed in, nor the other rows, nor the number of threads, nor whether segments were computed side by side changes a
// bit of it.
#pragma once

#include <cstdint>

#include "cpu/cpu_features.h"
#include "cpu/parallel.h"

namespace apar::cpu {

constexpr int32_t kBlockEntries = 64;
constexpr int32_t kSegmentEntries = 4096;
constexpr int32_t kMaxHeadDim = 256;

// kFloat8, e4m3, is a type of caches alone.
enum class ElementType { kFloat32, kFloat16, kBFloat16, kFloat8 };

struct TreeAttentionParams {
  const void* q = nullptr;        // [R, Hq, D], last dimension contiguous
  const void* k_cache = nullptr;  // [num_pages, Hkv, page_size, D], contiguous
  const void* v_cache = nullptr;
  const int32_t* page_table = nullptr;  // [S, max_pages], contiguous
  const int32_t* schedule = nullptr;    // write_plan's output; gives R, Hkv, group and page size
  const float* sinks = nullptr;         // [Hq] or null
  void* out = nullptr;                  // [R, Hq, D], contiguous
  float* lse = nullptr;                 // [R, Hq] or null
  int64_t q_row_stride = 0;             // elements
  int64_t q_head_stride = 0;
  ElementType type = ElementType::kFloat32;     // of queries and outputs
  ElementType kv_type = ElementType::kFloat32;  // of the caches: the same, or kFloat8
  const float* k_scale = nullptr;               // [Hkv] or null: what stored keys are multiplied with
  const float* v_scale = nullptr;
  int32_t head_dim = 0;  // a multiple of 16, at most kMaxHeadDim
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  CpuLevel level = CpuLevel::kPortable;
  int32_t num_threads = 1;  // how many bodies parallel_for runs at a time
};

void tree_attention(const TreeAttentionParams& params, const ParallelFor& parallel_for);

}  // namespace apar::cpu
