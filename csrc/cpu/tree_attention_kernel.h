// Between the driver of tree_attention and its kernels, which are compiled once per instruction set. Only plain data
// here: a function defined inline in this header could be emitted with AVX-512 code and then be picked by the linker
// for everybody.
#pragma once

#include <cstdint>

#include "core/plan.h"
#include "cpu/tree_attention.h"

namespace apar::cpu {

// What all tasks of one call share.
struct TileProblem {
  TreeAttentionParams params;
  const int32_t* tile_row;
  const int32_t* tile_walk;
  const int32_t* walk_stream;
  const int32_t* walk_reader;
  const PlanReader* readers;
  int32_t max_pages;
  int32_t num_kv_heads;
  int32_t group_size;
  int32_t page_size;
  int32_t max_tile_rows;
  int32_t heads_per_task;
  // Only where tiles are split. A partial result is (m, l, unused..., O[D]), one per (walk entry, segment, reader,
  // query head); those of walk entry w start with record walk_partial[w].
  float* partials;
  const int64_t* walk_partial;
  int64_t partial_stride;  // floats
};

constexpr int64_t kPartialHeader = 16;  // floats before O in a partial result

// A part of a tile for one KV head: segments from (walk_begin, segment_begin) up to, not including, (walk_end,
// segment_end). Segments are numbered from the start of the stream.
struct TileTask {
  enum Kind : int32_t { kWhole, kPart, kFold };
  Kind kind;  // the whole tile; a part, which leaves partial results; the fold of a tile's partial results
  int32_t tile;
  int32_t head_begin;  // KV heads, at most heads_per_task
  int32_t head_end;
  int32_t walk_begin;
  int32_t segment_begin;
  int32_t walk_end;
  int32_t segment_end;
};

struct TileKernel {
  int64_t (*scratch_bytes)(const TileProblem& problem);
  // scratch: 64-byte aligned, scratch_bytes long, of any content.
  void (*run)(const TileProblem& problem, const TileTask& task, void* scratch);
};

// By the type of the caches.
TileKernel tile_kernel_portable(ElementType kv_type);
TileKernel tile_kernel_avx2(ElementType kv_type);
TileKernel tile_kernel_avx512(ElementType kv_type);
TileKernel tile_kernel_avx512bf16(ElementType kv_type);

}  // namespace apar::cpu
