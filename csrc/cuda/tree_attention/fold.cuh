// What the computing warps of tree_attention do with an item: they fold the entries of each step, which somebody else
// has brought to shared memory, into the outputs of the item's packed rows, which stay in registers until the item
// ends.
//
// The packed rows are cut into strips of 16. The warps of a strip share out the block's entries for the scores,
// exchange maxima and weights through shared memory, and share out the output's columns for the values. Weights are
// summed by the matrix instruction, so a row's arithmetic is the same whatever the number of warps.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/scheduler.cuh"
#include "cuda/tree_attention/softmax.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// Where the partial results of one strip of 16 packed rows and one head lie: outputs [16, D], maxima [16], sums [16].
template <typename Traits>
struct PartialResult {
  static constexpr int64_t kFloats = static_cast<int64_t>(kStripRows) * (Traits::kHeadDim + 2);
  float* base;
  APAR_DEVICE PartialResult(const TreeAttentionParams& params, int strip, int head)
      : base(params.partials + (static_cast<int64_t>(strip) * params.num_kv_heads + head) * kFloats) {}
  APAR_DEVICE float* output(int row, int column) const { return base + row * Traits::kHeadDim + column; }
  APAR_DEVICE float* maximum(int row) const { return base + kStripRows * Traits::kHeadDim + row; }
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

template <typename Traits>
class Fold {
 public:
  using T = typename Traits::T;
  using Shared = typename Traits::Shared;

  APAR_DEVICE Fold(const TreeAttentionArguments& arguments, Shared* shared)
      : params_(arguments.params),
        score_scale_(arguments.score_scale),
        units_(arguments.parts * arguments.params.num_kv_heads),
        shared_(shared),
        lane_(lane_index()),
        strip_(warp_index() % Traits::kStrips),
        warp_in_strip_(warp_index() / Traits::kStrips) {
    start_segment();
    start_total();
  }

  // One step, whose keys and values lie at these shared addresses; false: all work is done.
  APAR_DEVICE bool take(const Block<Traits::kRows>* block, uint32_t keys, uint32_t values) {
    const int flags = load_shared(&block->flags);
    if ((flags & kFirstOfSegment) != 0) finish_segment();
    if ((flags & kFirstOfItem) != 0) {
      finish_item();
      if ((flags & kEndOfWork) != 0) return false;
      start_item(block);
    }
    if ((flags & kHasEntries) != 0) {
      segment_used_ = true;
      add_block(block, keys, values);
    }
    return true;
  }

 private:
  // ---- one block of entries

  APAR_DEVICE void synchronize_strip(const Location& where = Location::current()) {
    if constexpr (Traits::kWarpsPerStrip == 1) {
      synchronize_warp(where);
    } else {
      synchronize_threads(1 + strip_, Traits::kWarpsPerStrip * kWarpSize, where);
    }
  }

  APAR_DEVICE void add_block(const Block<Traits::kRows>* block, uint32_t keys, uint32_t values) {
    int first[2], end[2];
    bool sees_some = false, sees_all = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int seen = row_[half] >= 0 ? load_shared(&block->seen[row_[half]]) : 0;
      first[half] = seen & 0xffff;
      end[half] = seen >> 16;
      sees_some |= end[half] > first[half];
      sees_all &= row_[half] < 0 || (first[half] == 0 && end[half] == kTokens);
    }
    if (ballot(sees_some) == 0) return;  // the same in all warps of the strip
    const bool masked = ballot(sees_all) != kAllLanes;
    const uint32_t low = load_shared(&block->visible[0]), high = load_shared(&block->visible[1]);
    const int first_token = warp_in_strip_ * Traits::kTokensPerWarp;

    float scores[Traits::kScoreTiles][4];
    compute_scores(scores, keys, first_token);

    float maxima[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int tile = 0; tile < Traits::kScoreTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2;
        const int token = first_token + tile * 8 + lane_ % 4 * 2 + i % 2;
        float value = score(scores[tile][i], score_scale_);
        if (masked && (token < first[half] || token >= end[half])) value = minus_infinity();
        scores[tile][i] = value;
        maxima[half] = max_of(maxima[half], value);
      }
    }
    share_maxima(maxima);

    float bases[2], factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float maximum = max_of(segment_maximum_[half], maxima[half]);
      bases[half] = maximum == minus_infinity() ? 0.0f : maximum;
      factors[half] = exp2_fast(segment_maximum_[half] - bases[half]);
      segment_maximum_[half] = maximum;
    }
#pragma unroll
    for (int tile = 0; tile < Traits::kScoreTiles; ++tile) {
      T* weights = &shared_->weights[strip_][lane_ / 4][first_token + tile * 8 + lane_ % 4 * 2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_shared(reinterpret_cast<uint32_t*>(weights + half * 8 * Traits::kWeightStride),
                     pack<T>(exp2_fast(scores[tile][2 * half] - bases[half]),
                             exp2_fast(scores[tile][2 * half + 1] - bases[half])));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) segment_sum_[i] *= factors[i / 2];
#pragma unroll
    for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
#pragma unroll
      for (int i = 0; i < 8; ++i) segment_[unit][i / 4][i % 4] *= factors[i % 4 / 2];
    }
    synchronize_strip();
    add_values(values, low, high);
  }

  // Strip x the warp's share of the tokens.
  APAR_DEVICE void compute_scores(float (&scores)[Traits::kScoreTiles][4], uint32_t keys, int first_token) {
#pragma unroll
    for (int tile = 0; tile < Traits::kScoreTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][i] = 0.0f;
    }
    // Lane by lane the row, and of its parts the first or the second.
    const uint32_t queries =
        shared_address(shared_->q[q_slot_]) + Traits::offset_of(strip_ * 16 + lane_ % 16, lane_ / 16);
    keys += Traits::entry_offset(first_token + lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
#pragma unroll 2
    for (int column = 0; column < Traits::kHeadDim; column += 16) {
      uint32_t a[4];
      load_matrices_x4(a, Traits::step_to(queries, column / 8));
#pragma unroll
      for (int tile = 0; tile < Traits::kScoreTiles; tile += 2) {
        uint32_t b[4];
        load_matrices_x4(b, Traits::entry_step(keys, column / 8) + tile * 8 * Traits::kEntryStrideBytes);
        multiply_accumulate<T>(scores[tile], a, b[0], b[1]);
        multiply_accumulate<T>(scores[tile + 1], a, b[2], b[3]);
      }
    }
  }

  // From a thread's own tokens to all of the block.
  APAR_DEVICE void share_maxima(float (&maxima)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maxima[half] = max_of(maxima[half], shuffle_xor(maxima[half], 1));
      maxima[half] = max_of(maxima[half], shuffle_xor(maxima[half], 2));
    }
    if constexpr (Traits::kWarpsPerStrip > 1) {
      if (lane_ % 4 == 0) {
        store_shared(&shared_->maxima[strip_][warp_in_strip_][lane_ / 4], maxima[0]);
        store_shared(&shared_->maxima[strip_][warp_in_strip_][lane_ / 4 + 8], maxima[1]);
      }
      synchronize_strip();
#pragma unroll
      for (int warp = 0; warp < Traits::kWarpsPerStrip; ++warp) {
        maxima[0] = max_of(maxima[0], load_shared(&shared_->maxima[strip_][warp][lane_ / 4]));
        maxima[1] = max_of(maxima[1], load_shared(&shared_->maxima[strip_][warp][lane_ / 4 + 8]));
      }
    }
  }

  // Strip x the warp's share of the columns; 16 tokens that nobody sees are left out.
  APAR_DEVICE void add_values(uint32_t values, uint32_t low, uint32_t high) {
    const uint32_t one = pack<T>(1.0f, 1.0f);
    const uint32_t weights = shared_address(&shared_->weights[strip_][lane_ % 16][lane_ / 16 * 8]);
    values += Traits::entry_offset(lane_ % 16, warp_in_strip_ * 2 + lane_ / 16);
    // Unrolled further, sm_80 spills.
#pragma unroll 2
    for (int token = 0; token < kTokens; token += 16) {
      if (((token < 32 ? low : high) >> (token % 32) & 0xffff) == 0) continue;
      uint32_t a[4];
      load_matrices_x4(a, weights + token * sizeof(T));
      multiply_accumulate<T>(segment_sum_, a, one, one);
#pragma unroll
      for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
        if (!has_unit(unit)) continue;
        uint32_t b[4];
        load_matrices_x4_transposed(
            b, Traits::entry_step(values, unit * Traits::kWarpsPerStrip * 2) + token * Traits::kEntryStrideBytes);
        multiply_accumulate<T>(segment_[unit][0], a, b[0], b[1]);
        multiply_accumulate<T>(segment_[unit][1], a, b[2], b[3]);
      }
    }
  }

  // Units of 16 columns are dealt out in turn.
  APAR_DEVICE bool has_unit(int unit) const {
    return Traits::kColumnUnits % Traits::kWarpsPerStrip == 0 ||
           unit * Traits::kWarpsPerStrip + warp_in_strip_ < Traits::kColumnUnits;
  }
  // Of register i of a tile; columns i and i + 1 lie in registers i and i + 1 for even i.
  APAR_DEVICE int column_of(int unit, int tile) const {
    return (unit * Traits::kWarpsPerStrip + warp_in_strip_) * 16 + tile * 8 + lane_ % 4 * 2;
  }
  APAR_DEVICE int packed_of(int half) const { return strip_ * 16 + half * 8 + lane_ / 4; }

  // ---- segments and items

  APAR_DEVICE void start_segment() {
#pragma unroll
    for (int i = 0; i < 4; ++i) segment_sum_[i] = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) segment_maximum_[half] = minus_infinity();
#pragma unroll
    for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
#pragma unroll
      for (int i = 0; i < 8; ++i) segment_[unit][i / 4][i % 4] = 0.0f;
    }
    segment_used_ = false;
  }

  APAR_DEVICE void start_total() {
#pragma unroll
    for (int half = 0; half < 2; ++half) total_state_[half] = empty_state();
#pragma unroll
    for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
#pragma unroll
      for (int i = 0; i < 8; ++i) total_[unit][i / 4][i % 4] = 0.0f;
    }
  }

  APAR_DEVICE void start_item(const Block<Traits::kRows>* block) {
    q_slot_ = load_shared(&block->q_slot);
    unit_ = load_shared(&block->unit);
    const WorkItem* item = &block->item;
    index_ = load_shared(&item->index);
    leaves_segments_ = load_shared(&item->leaves_segments) != 0;
    const int first_packed = load_shared(&item->first_packed), num_packed = load_shared(&item->num_packed);
    const int first_row = first_packed / params_.group_size;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int packed = packed_of(half);
      row_[half] = packed < num_packed ? (first_packed + packed) / params_.group_size - first_row : -1;
    }
    partials_written_ = 0;
  }

  // Folds the segment into the item's total, or leaves it to the merge.
  APAR_DEVICE void finish_segment() {
    if (leaves_segments_) {
      const SoftmaxState states[2] = {{segment_maximum_[0], segment_sum_[0]}, {segment_maximum_[1], segment_sum_[2]}};
      if (segment_used_) write_partial(states, segment_);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const SoftmaxState next{segment_maximum_[half], segment_sum_[2 * half]};
        if (!folds(next)) continue;
        const FoldFactors factors = fold(total_state_[half], next);
#pragma unroll
        for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& total = total_[unit][i / 2][2 * half + i % 2];
            total = fold_output(total, segment_[unit][i / 2][2 * half + i % 2], factors);
          }
        }
      }
    }
    start_segment();
  }

  APAR_DEVICE int head() const { return unit_ % params_.num_kv_heads; }
  // Packed rows of the item before this part.
  APAR_DEVICE int skipped() const { return unit_ / params_.num_kv_heads * Traits::kRows; }

  APAR_DEVICE void finish_item() {
    if (index_ < 0) return;  // before the first
    const WorkItem* item = params_.items + index_;
    const int merge = load_constant(&item->merge);
    if (merge < 0) {
      write_output(load_constant(&item->first_packed) + skipped());
    } else {
      if (!leaves_segments_) write_partial(total_state_, total_);
      arrive_and_merge(item, merge);
    }
    start_total();
  }

  APAR_DEVICE void write_output(int first_packed) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_[half] < 0) continue;
      const OutputPlace place = output_place(params_, first_packed + packed_of(half), head());
      SoftmaxState state = total_state_[half];
      const float before =
          params_.sinks != nullptr ? fold_sink(state, load_constant(params_.sinks + place.query_head)) : 1.0f;
      const float factor = before * output_factor(state);
#pragma unroll
      for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
        if (!has_unit(unit)) continue;
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          T* target = static_cast<T*>(params_.out) + place.index * Traits::kHeadDim + column_of(unit, tile);
          store_global(reinterpret_cast<uint32_t*>(target),
                       pack<T>(finished(total_[unit][tile][2 * half], factor),
                               finished(total_[unit][tile][2 * half + 1], factor)));
        }
      }
      if (params_.lse != nullptr && warp_in_strip_ == 0 && lane_ % 4 == 0) {
        store_global(params_.lse + place.index, natural_lse(state));
      }
    }
  }
  // A zero has no sign: which zeros were added on the way depends on other rows.
  static APAR_DEVICE float finished(float output, float factor) { return output * factor + 0.0f; }

  // ---- partial results

  APAR_DEVICE void write_partial(const SoftmaxState (&states)[2], const float (&outputs)[Traits::kUnitsPerWarp][2][4]) {
    const WorkItem* item = params_.items + index_;
    const int before = partials_written_++ * strips_of(item) + skipped() / kStripRows;
    const PartialResult<Traits> partial(params_, load_constant(&item->partial) + before + strip_, head());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int packed = half * 8 + lane_ / 4;
      if (row_[half] < 0) continue;
#pragma unroll
      for (int unit = 0; unit < Traits::kUnitsPerWarp; ++unit) {
        // What saw nothing is not read either.
        if (!has_unit(unit) || !folds(states[half])) continue;
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          store_global(reinterpret_cast<Pair*>(partial.output(packed, column_of(unit, tile))),
                       Pair{outputs[unit][tile][2 * half], outputs[unit][tile][2 * half + 1]});
        }
      }
      if (warp_in_strip_ == 0 && lane_ % 4 == 0) {
        store_global(partial.maximum(packed), states[half].maximum);
        store_global(partial.sum(packed), states[half].sum);
      }
    }
  }

  // The last block of threads to arrive folds all partial results of the rows, in the order of the walk.
  APAR_DEVICE void arrive_and_merge(const WorkItem* item, int merge) {
    int32_t* arrivals = params_.arrivals + static_cast<int64_t>(merge) * units_ + unit_;
    if (thread_index() == 0) {
      store_global(params_.segments_used + static_cast<int64_t>(index_) * units_ + unit_, partials_written_);
    }
    synchronize_threads(kComputeBarrier, Traits::kComputeThreads);
    if (thread_index() == 0) {
      fence_device();
      const int arrived = atomic_add(arrivals, 1);
      fence_device();
      store_shared(&shared_->arrived, arrived);
    }
    synchronize_threads(kComputeBarrier, Traits::kComputeThreads);
    const int begin = load_constant(&item->merge_begin), end = load_constant(&item->merge_end);
    if (load_shared(&shared_->arrived) != end - begin - 1) return;
    if (thread_index() == 0) store_global(arrivals, 0);  // for the next launch
    const int first_packed = load_constant(&item->first_packed) + skipped();
    const int num_packed = smaller(load_constant(&item->num_packed) - skipped(), Traits::kRows);
#pragma unroll 1
    for (int packed = warp_index(); packed < num_packed; packed += Traits::kWarps) {
      merge_row(begin, end, packed, first_packed + packed);
    }
  }

  // One warp, each lane every 32nd column.
  APAR_DEVICE void merge_row(int begin, int end, int packed, int global_packed) {
    constexpr int kColumns = (Traits::kHeadDim + kWarpSize - 1) / kWarpSize;
    SoftmaxState state = empty_state();
    float outputs[kColumns] = {};
    for (int index = begin; index < end; ++index) {
      const WorkItem* item = params_.items + index;
      const int first = load_constant(&item->partial) + (skipped() + packed) / kStripRows, strips = strips_of(item);
      const int used = load_from_other_block(params_.segments_used + static_cast<int64_t>(index) * units_ + unit_);
      for (int i = 0; i < used; ++i) {
        const PartialResult<Traits> partial(params_, first + i * strips, head());
        const SoftmaxState next{load_from_other_block(partial.maximum(packed % kStripRows)),
                                load_from_other_block(partial.sum(packed % kStripRows))};
        if (!folds(next)) continue;
        const FoldFactors factors = fold(state, next);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int column = c * kWarpSize + lane_;
          if (column >= Traits::kHeadDim) continue;
          outputs[c] =
              fold_output(outputs[c], load_from_other_block(partial.output(packed % kStripRows, column)), factors);
        }
      }
    }
    const OutputPlace place = output_place(params_, global_packed, head());
    const float before =
        params_.sinks != nullptr ? fold_sink(state, load_constant(params_.sinks + place.query_head)) : 1.0f;
    const float factor = before * output_factor(state);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kWarpSize + lane_;
      if (column >= Traits::kHeadDim) continue;
      store_global(static_cast<T*>(params_.out) + place.index * Traits::kHeadDim + column,
                   from_float<T>(finished(outputs[c], factor)));
    }
    if (params_.lse != nullptr && lane_ == 0) store_global(params_.lse + place.index, natural_lse(state));
  }

  static constexpr int kComputeBarrier = 8;  // 1 to 4 are the strips'
  struct alignas(8) Pair {
    float low, high;
  };

  const TreeAttentionParams& params_;
  const ScoreScale score_scale_;
  const int units_;
  Shared* const shared_;
  const int lane_, strip_, warp_in_strip_;

  // the item
  int index_ = -1, unit_ = 0, q_slot_ = 0, partials_written_ = 0;
  bool leaves_segments_ = false;  // to the merge, since its total goes on from another item's
  int row_[2] = {-1, -1};         // of this thread's packed rows lane / 4 and lane / 4 + 8 of the strip; -1: none
  bool segment_used_ = false;
  // Outputs in the layout of the matrix instruction: units of 16 columns, two tiles of 8 each. Sums stand in all
  // columns.
  float segment_maximum_[2];
  float segment_sum_[4];
  float segment_[Traits::kUnitsPerWarp][2][4];
  SoftmaxState total_state_[2];
  float total_[Traits::kUnitsPerWarp][2][4];
};

}  // namespace apar::cuda
