// Partial results of items whose strand is cut, and the folding of them by the last block of threads to arrive.
#pragma once

#include "core/work.h"
#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/softmax.cuh"

namespace apar::cuda {

// Where the partial results of one strip of 16 packed rows and one head lie: outputs [16, D], maxima [16], sums [16].
struct PartialResult {
  const int head_dim;
  float* const base;
  APAR_DEVICE PartialResult(const TreeAttentionParams& params, int head_dim, int strip, int head)
      : head_dim(head_dim),
        base(params.partials +
             (static_cast<int64_t>(strip) * params.num_kv_heads + head) * kStripRows * (head_dim + 2)) {}
  APAR_DEVICE float* output(int row, int column) const { return base + row * head_dim + column; }
  APAR_DEVICE float* maximum(int row) const { return base + kStripRows * head_dim + row; }
  APAR_DEVICE float* sum(int row) const { return maximum(row) + kStripRows; }
};
// Strips of an item's partial result.
APAR_DEVICE int strips_of(const WorkItem* item) {
  return (load_constant(&item->num_packed) + kStripRows - 1) / kStripRows;
}

// Element offset of a packed row's output, and its index into lse.
struct OutputPlace {
  int64_t index;
  int query_head;
};
APAR_DEVICE OutputPlace output_place(const TreeAttentionParams& params, int global_packed, int head) {
  const int row = global_packed / params.group_size;
  const int query_head = head * params.group_size + global_packed % params.group_size;
  return {static_cast<int64_t>(row) * params.num_kv_heads * params.group_size + query_head, query_head};
}

// What a row's outputs are multiplied with in the end; takes the sink, if any, into the state.
APAR_DEVICE float final_factor(const TreeAttentionParams& params, SoftmaxState& state, int query_head, int head) {
  const float before = params.sinks != nullptr ? fold_sink(state, load_constant(params.sinks + query_head)) : 1.0f;
  const float factor = before * output_factor(state);
  return params.v_scale != nullptr ? factor * load_constant(params.v_scale + head) : factor;
}
// A zero has no sign: which zeros were added on the way depends on other rows.
APAR_DEVICE float finished(float output, float factor) { return output * factor + 0.0f; }

// Row `packed` of a cut strand's items [begin, end), by one warp: folds what they left in the order of the walk and
// writes the output. `unit` says which part and head, `units` how many there are.
template <typename T, int kMaxHeadDim>
APAR_DEVICE void merge_row(const TreeAttentionParams& params, int head_dim, int begin, int end, int packed,
                           int global_packed, int unit, int units) {
  constexpr int kColumns = (kMaxHeadDim + kWarpSize - 1) / kWarpSize;
  const int lane = lane_index(), head = unit % params.num_kv_heads, row = packed % kStripRows;
  SoftmaxState state = empty_state();
  float outputs[kColumns] = {};  // every 32nd column
  for (int index = begin; index < end; ++index) {
    const WorkItem* item = params.items + index;
    const int first = load_constant(&item->partial) + packed / kStripRows, strips = strips_of(item);
    const int used = load_from_other_block(params.segments_used + static_cast<int64_t>(index) * units + unit);
    for (int i = 0; i < used; ++i) {
      const PartialResult partial(params, head_dim, first + i * strips, head);
      const SoftmaxState next{load_from_other_block(partial.maximum(row)), load_from_other_block(partial.sum(row))};
      if (!folds(next)) continue;
      const FoldFactors factors = fold(state, next);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int column = c * kWarpSize + lane;
        if (column >= head_dim) continue;
        outputs[c] = fold_output(outputs[c], load_from_other_block(partial.output(row, column)), factors);
      }
    }
  }
  const OutputPlace place = output_place(params, global_packed, head);
  const float factor = final_factor(params, state, place.query_head, head);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int column = c * kWarpSize + lane;
    if (column >= head_dim) continue;
    store_global(static_cast<T*>(params.out) + place.index * head_dim + column,
                 from_float<T>(finished(outputs[c], factor)));
  }
  if (params.lse != nullptr && lane == 0) store_global(params.lse + place.index, natural_lse(state));
}

constexpr int kComputeBarrier = 8;

// Called by the first `threads` threads of a block when their item `index` has left `used` partial results: the last
// block to arrive folds those of all items of the strand, as far as they concern this part, and writes the output.
template <typename T, int kMaxHeadDim>
APAR_DEVICE void arrive_and_merge(const TreeAttentionArguments& arguments, int head_dim, int index, int unit, int used,
                                  int32_t* shared_arrived, int threads) {
  const TreeAttentionParams& params = arguments.params;
  const WorkItem* item = params.items + index;
  const int units = arguments.parts * params.num_kv_heads;
  int32_t* arrivals = params.arrivals + static_cast<int64_t>(load_constant(&item->merge)) * units + unit;
  if (thread_index() == 0) store_global(params.segments_used + static_cast<int64_t>(index) * units + unit, used);
  synchronize_threads(kComputeBarrier, threads);
  if (thread_index() == 0) {
    fence_device();
    const int arrived = atomic_add(arrivals, 1);
    fence_device();
    store_shared(shared_arrived, arrived);
  }
  synchronize_threads(kComputeBarrier, threads);
  const int begin = load_constant(&item->merge_begin), end = load_constant(&item->merge_end);
  if (load_shared(shared_arrived) != end - begin - 1) return;
  if (thread_index() == 0) store_global(arrivals, 0);  // for the next launch
  const int first_packed = load_constant(&item->first_packed), num_packed = load_constant(&item->num_packed);
  const int skipped = unit / params.num_kv_heads * arguments.shared.rows;
  const int end_packed = smaller(num_packed, skipped + arguments.shared.rows);
#pragma unroll 1
  for (int packed = skipped + warp_index(); packed < end_packed; packed += threads / kWarpSize) {
    merge_row<T, kMaxHeadDim>(params, head_dim, begin, end, packed, first_packed + packed, unit, units);
  }
}

}  // namespace apar::cuda
