// What Fold does (fold.cuh), by two warpgroups of 64 packed rows each.
//
// Scores are products of queries and keys that both lie in shared memory. Weights stay in registers, where they are the
// left side of the product with the values. A product sums 16 columns or entries at a time and in the order of
// fold.cuh, segments are folded as there, and the total lies in shared memory, so only the rounding inside a product
// can differ. Values that are not finite and that one row sees make other rows of the 64 NaN that see another entry of
// the block.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/hopper/traits.h"
#include "cuda/tree_attention/merge.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/softmax.cuh"
#include "cuda/warpgroup.cuh"

namespace apar::cuda {

template <typename Traits>
class WarpgroupFold {
 public:
  using T = typename Traits::T;
  using Shared = typename Traits::Shared;

  // `room`: behind what is shared: the totals, then the queries.
  APAR_DEVICE WarpgroupFold(const TreeAttentionArguments& arguments, Shared* shared, unsigned char* room)
      : arguments_(arguments),
        params_(arguments.params),
        shared_(shared),
        totals_(reinterpret_cast<float*>(room)),
        queries_(shared_address(room) + Traits::totals_bytes(Traits::kMaxRows)),
        lane_(lane_index()),
        strip_(warp_index()),
        warpgroup_(strip_ / 4) {
    start_segment();
  }

  // One step, whose keys and values lie at these shared addresses; false: all work is done.
  APAR_DEVICE bool take(const Block<Traits::kMaxRows>* block, uint32_t keys, uint32_t values) {
    const int flags = load_shared(&block->flags);
    if ((flags & kFirstOfSegment) != 0) finish_segment();
    if ((flags & kFirstOfItem) != 0) {
      finish_item();
      if ((flags & kEndOfWork) != 0) return false;
      start_item(block);
    }
    if ((flags & kHasEntries) != 0) {
      segment_used_ = true;
      // What threads have copied to shared memory is not yet there for products: these entries, or the item's queries,
      // which later steps need even if this one is left out.
      if ((flags & kCopiedByThreads) != 0) fence_async_proxy();
      if (warpgroup_sees_some(block)) add_block(block, keys, values);
    }
    return true;
  }

 private:
  // ---- one block of entries

  // All of its warps multiply or none does.
  APAR_DEVICE bool warpgroup_sees_some(const Block<Traits::kMaxRows>* block) const {
    bool some = false;
#pragma unroll
    for (int i = 0; i < Traits::kRowsAtOnce; i += kWarpSize) {
      const int row = begin_row_ + i + lane_;
      if (row < end_row_) some |= load_shared(&block->seen[row]) != 0;
    }
    return ballot(some) != 0;
  }

  APAR_DEVICE void add_block(const Block<Traits::kMaxRows>* block, uint32_t keys, uint32_t values) {
    float scores[Traits::kScoreTiles][4];
    compute_scores(scores, keys);
    scale_scores(scores);
    mask_scores(scores, block);
    float maxima[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int i = 0; i < 4 * Traits::kScoreTiles; ++i) {
      maxima[i % 4 / 2] = max_of(maxima[i % 4 / 2], scores[i / 4][i % 4]);
    }
    float bases[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maxima[half] = max_of(maxima[half], shuffle_xor(maxima[half], 1));
      maxima[half] = max_of(maxima[half], shuffle_xor(maxima[half], 2));
      const float maximum = max_of(segment_maximum_[half], maxima[half]);
      bases[half] = maximum == minus_infinity() ? 0.0f : maximum;
      const float factor = exp2_fast(segment_maximum_[half] - bases[half]);
      segment_maximum_[half] = maximum;
      segment_sum_[2 * half] *= factor;
      segment_sum_[2 * half + 1] *= factor;
#pragma unroll
      for (int i = 0; i < 2 * Traits::kOutputTiles; ++i) outputs_[i / 2][2 * half + i % 2] *= factor;
    }
    // As the next product wants them on its left side, 16 entries each.
    uint32_t weights[kTokens / 16][4];
#pragma unroll
    for (int i = 0; i < 2 * Traits::kScoreTiles; ++i) {
      const int tile = i / 2, half = i % 2;
      weights[tile / 2][tile % 2 * 2 + half] =
          pack<T>(exp2_fast(scores[tile][2 * half] - bases[half]), exp2_fast(scores[tile][2 * half + 1] - bases[half]));
    }
    add_values(weights, values);
  }

  // 64 rows x 64 entries.
  APAR_DEVICE void compute_scores(float (&scores)[Traits::kScoreTiles][4], uint32_t keys) {
    const uint64_t rows = describe_panels(queries_ + (q_row_ + warpgroup_ * Traits::kRowsAtOnce) * kPanelBytes, 0);
    const uint64_t entries = describe_panels(keys, 0);
    fence_products();
    multiply_shared<T, false>(scores, rows, entries);
#pragma unroll
    for (int column = 16; column < Traits::kHeadDim; column += 16) {
      const int panel = column / 64, inside = column % 64 * 2;
      multiply_shared<T, true>(scores, advance_panels(rows, panel * Traits::QueryLayout::kPanelStrideBytes + inside),
                               advance_panels(entries, panel * Traits::kStagePanelBytes + inside));
    }
    commit_products();
    wait_products<0>();
    settle(scores);
  }

  // One question about the softcap for all of them.
  APAR_DEVICE void scale_scores(float (&scores)[Traits::kScoreTiles][4]) const {
    if (score_scale_.softcap > 0.0f) {
#pragma unroll
      for (int i = 0; i < 4 * Traits::kScoreTiles; ++i) {
        scores[i / 4][i % 4] = score(scores[i / 4][i % 4], score_scale_);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4 * Traits::kScoreTiles; ++i) scores[i / 4][i % 4] *= score_scale_.before;
    }
  }

  APAR_DEVICE void mask_scores(float (&scores)[Traits::kScoreTiles][4], const Block<Traits::kMaxRows>* block) const {
    int first[2], end[2];
    bool sees_all = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int seen = row_[half] >= 0 ? load_shared(&block->seen[row_[half]]) : 0;
      first[half] = seen & 0xffff;
      end[half] = seen >> 16;
      sees_all &= row_[half] < 0 || (first[half] == 0 && end[half] == kTokens);
    }
    if (ballot(sees_all) == kAllLanes) return;
#pragma unroll
    for (int i = 0; i < 4 * Traits::kScoreTiles; ++i) {
      const int half = i % 4 / 2, token = i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      if (token < first[half] || token >= end[half]) scores[i / 4][i % 4] = minus_infinity();
    }
  }

  APAR_DEVICE void add_values(const uint32_t (&weights)[kTokens / 16][4], uint32_t values) {
    const uint64_t entries = describe_panels(values, Traits::kStagePanelBytes);
    settle(outputs_);
    fence_products();
#pragma unroll
    for (int token = 0; token < kTokens; token += 16) {
      multiply_transposed<T>(outputs_, weights[token / 16], advance_panels(entries, token * kPanelBytes));
    }
    commit_products();
    const uint32_t one = pack<T>(1.0f, 1.0f);
#pragma unroll
    for (int token = 0; token < kTokens; token += 16) {
      multiply_accumulate<T>(segment_sum_, weights[token / 16], one, one);
    }
    wait_products<0>();
    settle(outputs_);
  }

  // ---- segments and items

  APAR_DEVICE void start_segment() {
#pragma unroll
    for (int i = 0; i < 4; ++i) segment_sum_[i] = 0.0f;
    segment_maximum_[0] = segment_maximum_[1] = minus_infinity();
#pragma unroll
    for (int i = 0; i < 4 * Traits::kOutputTiles; ++i) outputs_[i / 4][i % 4] = 0.0f;
    segment_used_ = false;
  }

  APAR_DEVICE void start_item(const Block<Traits::kMaxRows>* block) {
    q_row_ = load_shared(&block->q_row);
    unit_ = load_shared(&block->unit);
    const WorkItem* item = &block->item;
    index_ = load_shared(&item->index);
    leaves_segments_ = load_shared(&item->leaves_segments) != 0;
    const int first_packed = load_shared(&item->first_packed), num_packed = load_shared(&item->num_packed);
    const int first_row = first_packed / params_.group_size;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int packed = strip_ * kStripRows + half * 8 + lane_ / 4;
      row_[half] = packed < num_packed ? (first_packed + packed) / params_.group_size - first_row : -1;
    }
    const int begin = warpgroup_ * Traits::kRowsAtOnce, end = smaller(begin + Traits::kRowsAtOnce, num_packed);
    begin_row_ = (first_packed + begin) / params_.group_size - first_row;
    end_row_ = end > begin ? (first_packed + end - 1) / params_.group_size - first_row + 1 : begin_row_;
    score_scale_ = arguments_.score_scale;
    partials_written_ = 0;
    total_state_[0] = total_state_[1] = empty_state();
    total_is_empty_ = true;
    start_segment();
  }

  // Where this thread keeps one of its accumulators' totals.
  APAR_DEVICE float* total_place(int tile, int i) const {
    return totals_ + (tile * 4 + i) * Traits::kComputeThreads + thread_index();
  }

  // Folds the segment into the item's total, or leaves it to the merge.
  APAR_DEVICE void finish_segment() {
    if (segment_used_) {
      const SoftmaxState states[2] = {{segment_maximum_[0], segment_sum_[0]}, {segment_maximum_[1], segment_sum_[2]}};
      if (leaves_segments_) {
        write_partial(states);
      } else {
        add_to_total(0, states[0]);
        add_to_total(1, states[1]);
        total_is_empty_ = false;
      }
    }
    start_segment();
  }

  APAR_DEVICE void add_to_total(int half, const SoftmaxState& next) {
    const bool changes = folds(next);
    if (!changes && !total_is_empty_) return;
    const FoldFactors factors = changes ? fold(total_state_[half], next) : FoldFactors{0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2 * Traits::kOutputTiles; ++i) {
      float* place = total_place(i / 2, 2 * half + i % 2);
      const float total = total_is_empty_ ? 0.0f : load_shared(place);
      store_shared(place, changes ? fold_output(total, outputs_[i / 2][2 * half + i % 2], factors) : 0.0f);
    }
  }

  APAR_DEVICE void finish_item() {
    if (index_ < 0) return;  // before the first
    const WorkItem* item = params_.items + index_;
    if (!total_is_empty_) {
      // The segment's registers are free.
#pragma unroll
      for (int i = 0; i < 4 * Traits::kOutputTiles; ++i)
        outputs_[i / 4][i % 4] = load_shared(total_place(i / 4, i % 4));
    }
    if (load_constant(&item->merge) < 0) {
      write_output(load_constant(&item->first_packed));
    } else {
      if (!leaves_segments_) write_partial(total_state_);
      arrive_and_merge<T, Traits::kHeadDim>(arguments_, Traits::kHeadDim, index_, unit_, partials_written_,
                                            &shared_->arrived, Traits::kComputeThreads);
    }
  }

  APAR_DEVICE void write_output(int first_packed) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_[half] < 0) continue;
      const int packed = first_packed + strip_ * kStripRows + half * 8 + lane_ / 4;
      const OutputPlace place = output_place(params_, packed, unit_);
      SoftmaxState state = total_state_[half];
      const float factor = final_factor(params_, state, place.query_head, unit_);
      T* target = static_cast<T*>(params_.out) + place.index * Traits::kHeadDim + lane_ % 4 * 2;
#pragma unroll
      for (int tile = 0; tile < Traits::kOutputTiles; ++tile) {
        store_global(
            reinterpret_cast<uint32_t*>(target + tile * 8),
            pack<T>(finished(outputs_[tile][2 * half], factor), finished(outputs_[tile][2 * half + 1], factor)));
      }
      if (params_.lse != nullptr && lane_ % 4 == 0) store_global(params_.lse + place.index, natural_lse(state));
    }
  }

  APAR_DEVICE void write_partial(const SoftmaxState (&states)[2]) {
    const WorkItem* item = params_.items + index_;
    const int before = partials_written_++ * strips_of(item);
    const PartialResult partial(params_, Traits::kHeadDim, load_constant(&item->partial) + before + strip_, unit_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + lane_ / 4;
      if (row_[half] < 0) continue;
      // Of a row that saw nothing nobody reads more than the sum.
      if (folds(states[half])) {
#pragma unroll
        for (int tile = 0; tile < Traits::kOutputTiles; ++tile) {
          store_global(reinterpret_cast<Pair*>(partial.output(row, tile * 8 + lane_ % 4 * 2)),
                       Pair{outputs_[tile][2 * half], outputs_[tile][2 * half + 1]});
        }
      }
      if (lane_ % 4 == 0) {
        store_global(partial.maximum(row), states[half].maximum);
        store_global(partial.sum(row), states[half].sum);
      }
    }
  }

  struct alignas(8) Pair {
    float low, high;
  };

  const TreeAttentionArguments& arguments_;
  const TreeAttentionParams& params_;
  Shared* const shared_;
  float* const totals_;
  const uint32_t queries_;  // shared address
  const int lane_, strip_, warpgroup_;

  // the item; unit_ is the KV head, since items are done as a whole
  int index_ = -1, unit_ = 0, q_row_ = 0, partials_written_ = 0;
  bool leaves_segments_ = false;     // to the merge, since its total goes on from another item's
  int row_[2] = {-1, -1};            // of this thread's packed rows lane / 4 and lane / 4 + 8 of the strip; -1: none
  int begin_row_ = 0, end_row_ = 0;  // of the item's rows, the warpgroup's
  ScoreScale score_scale_{};
  bool segment_used_ = false, total_is_empty_ = true;
  // In the layout of the accumulators: tiles of 8 columns. Sums stand in all columns.
  float segment_maximum_[2];
  float segment_sum_[4];
  SoftmaxState total_state_[2];
  float outputs_[Traits::kOutputTiles][4];
};

}  // namespace apar::cuda
