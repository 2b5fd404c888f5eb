// What the computing warps of tree_attention do with an item: they fold the entries of each step, which somebody else
// has brought to shared memory, into the outputs of the item's packed rows, which stay in registers until the item
// ends.
//
// The packed rows are cut into strips of 16, and the warps into as many teams as the item needs: two strips of four
// warps each, four of two, or eight of one (traits.h). The warps of a strip share out the block's entries for the
// scores, exchange maxima and weights through shared memory, and share out the output's columns for the values. Weights
// are summed by the matrix instruction, so a row's arithmetic is the same whatever the number of warps.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/fragments.cuh"
#include "cuda/tree_attention/merge.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/scheduler.cuh"
#include "cuda/tree_attention/softmax.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

template <typename Traits>
class Fold {
 public:
  using T = typename Traits::T;
  using Shared = typename Traits::Shared;
  using Fragments = KeyValueFragments<Traits>;

  // `room`: behind what is shared: the totals of wide items, then the queries.
  APAR_DEVICE Fold(const TreeAttentionArguments& arguments, Shared* shared, unsigned char* room)
      : arguments_(arguments),
        params_(arguments.params),
        shared_(shared),
        totals_(reinterpret_cast<float*>(room)),
        queries_(shared_address(room) + Traits::totals_bytes(arguments.shared.rows)),
        lane_(lane_index()) {
    start_segment<Traits::kMaxUnits>();
  }

  // One step, whose keys and values lie at these shared addresses; false: all work is done.
  APAR_DEVICE bool take(const Block<Traits::kMaxRows>* block, uint32_t keys, uint32_t values) {
    const int flags = load_shared(&block->flags);
    if ((flags & kFirstOfSegment) != 0) {
      with_team([&](auto team) {
        using Team = decltype(team);
        finish_segment<Team>();
        if ((flags & kFirstOfItem) != 0) finish_item<Team>();
      });
    }
    if ((flags & kFirstOfItem) != 0) {
      if ((flags & kEndOfWork) != 0) return false;
      start_item(block);
    }
    if ((flags & kHasEntries) != 0) {
      segment_used_ = true;
      with_team([&](auto team) { add_block<decltype(team)>(block, keys, values); });
    }
    return true;
  }

 private:
  template <typename Body>
  APAR_DEVICE void with_team(Body&& body) {
    if constexpr (Traits::kMaxStrips == 2) {
      body(Team<Traits::kHeadDim, 2>());
    } else if (strips_ == 2) {
      body(Team<Traits::kHeadDim, 2>());
    } else if (!kHasWideTeams || strips_ == 4) {
      body(Team<Traits::kHeadDim, 4>());
    } else if constexpr (kHasWideTeams) {
      body(Team<Traits::kHeadDim, 8>());
    }
  }

  // ---- one block of entries

  template <typename Team>
  APAR_DEVICE void synchronize_strip(const Location& where = Location::current()) {
    if constexpr (Team::kWarpsPerStrip > 1) {
      synchronize_threads(1 + Team::kFirstStrip + strip_, Team::kWarpsPerStrip * kWarpSize, where);
    }
  }

  template <typename Team>
  APAR_DEVICE void add_block(const Block<Traits::kMaxRows>* block, uint32_t keys, uint32_t values) {
    int first[2], end[2];
    int lowest = kTokens, highest = 0;
    bool sees_all = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int seen = row_[half] >= 0 ? load_shared(&block->seen[row_[half]]) : 0;
      first[half] = seen & 0xffff;
      end[half] = seen >> 16;
      if (seen != 0) lowest = smaller(lowest, first[half]);
      highest = larger(highest, end[half]);
      sees_all &= row_[half] < 0 || (first[half] == 0 && end[half] == kTokens);
    }
    highest = reduce_max(highest);
    if (highest == 0) return;  // nobody in the strip sees anything of it: the same in all its warps
    const uint32_t sixteens = bits_between(reduce_min(lowest) / 16, (highest + 15) / 16);
    const bool masked = ballot(sees_all) != kAllLanes;
    const int first_token = warp_in_strip_ * Team::kTokensPerWarp;

    float scores[Team::kPairs][2][4];
    compute_scores<Team>(scores, keys, first_token, sixteens);

    float maxima[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int pair = 0; pair < Team::kPairs; ++pair) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int half = i % 4 / 2;
        const int token = first_token + pair * 16 + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
        float value = score(scores[pair][i / 4][i % 4], score_scale_);
        if (masked && (token < first[half] || token >= end[half])) value = minus_infinity();
        scores[pair][i / 4][i % 4] = value;
        maxima[half] = max_of(maxima[half], value);
      }
    }
    share_maxima<Team>(maxima);

    float bases[2], factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float maximum = max_of(segment_maximum_[half], maxima[half]);
      bases[half] = maximum == minus_infinity() ? 0.0f : maximum;
      factors[half] = exp2_fast(segment_maximum_[half] - bases[half]);
      segment_maximum_[half] = maximum;
    }
    // As the matrix instruction wants them on its left side.
    uint32_t weights[Team::kPairs][4];
#pragma unroll
    for (int pair = 0; pair < Team::kPairs; ++pair) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* two = &scores[pair][i / 2][i % 2 * 2];
        weights[pair][i] = pack<T>(exp2_fast(two[0] - bases[i % 2]), exp2_fast(two[1] - bases[i % 2]));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) segment_sum_[i] *= factors[i / 2];
#pragma unroll
    for (int unit = 0; unit < Team::kUnits; ++unit) {
#pragma unroll
      for (int i = 0; i < 8; ++i) outputs_[unit][i / 4][i % 4] *= factors[i % 4 / 2];
    }
    share_weights<Team>(weights, first_token);
    add_values<Team>(weights, values, sixteens, Mask{masked, {first[0], first[1]}, {end[0], end[1]}});
  }

  // Strip x the warp's share of the tokens; what stays zero is masked later.
  template <typename Team>
  APAR_DEVICE void compute_scores(float (&scores)[Team::kPairs][2][4], uint32_t keys, int first_token,
                                  uint32_t sixteens) {
#pragma unroll
    for (int pair = 0; pair < Team::kPairs; ++pair) {
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[pair][i / 4][i % 4] = 0.0f;
    }
    const uint32_t mine = sixteens >> (first_token / 16) & ((1u << Team::kPairs) - 1);
    if (mine == 0) return;
    // Lane by lane the row, and of its parts the first or the second.
    const uint32_t queries = queries_ + q_row_ * Traits::QueryLayout::kStrideBytes +
                             Traits::QueryLayout::offset_of(strip_ * 16 + lane_ % 16, lane_ / 16);
    const Fragments fragments(lane_);
    if (Team::kPairs <= 2 || mine == (1u << Team::kPairs) - 1) {
      fragments.template multiply_keys<Team::kPairs>(scores, queries, keys, first_token);
    } else {
#pragma unroll
      for (int pair = 0; pair < Team::kPairs; ++pair) {
        if ((mine >> pair & 1) == 0) continue;
        float (&one)[1][2][4] = reinterpret_cast<float (&)[1][2][4]>(scores[pair]);
        fragments.template multiply_keys<1>(one, queries, keys, first_token + pair * 16);
      }
    }
  }

  // From a thread's own tokens to all of the block.
  template <typename Team>
  APAR_DEVICE void share_maxima(float (&maxima)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maxima[half] = max_of(maxima[half], shuffle_xor(maxima[half], 1));
      maxima[half] = max_of(maxima[half], shuffle_xor(maxima[half], 2));
    }
    if constexpr (Team::kWarpsPerStrip > 1) {
      auto& shared = shared_->maxima[Team::kStrips == 2 ? 0 : 1];
      if (lane_ % 4 == 0) {
        store_shared(&shared[strip_ * Team::kWarpsPerStrip + warp_in_strip_][lane_ / 4], maxima[0]);
        store_shared(&shared[strip_ * Team::kWarpsPerStrip + warp_in_strip_][lane_ / 4 + 8], maxima[1]);
      }
      synchronize_strip<Team>();
#pragma unroll
      for (int warp = 0; warp < Team::kWarpsPerStrip; ++warp) {
        maxima[0] = max_of(maxima[0], load_shared(&shared[strip_ * Team::kWarpsPerStrip + warp][lane_ / 4]));
        maxima[1] = max_of(maxima[1], load_shared(&shared[strip_ * Team::kWarpsPerStrip + warp][lane_ / 4 + 8]));
      }
    }
  }

  // To the other warps of the strip.
  template <typename Team>
  APAR_DEVICE void share_weights(const uint32_t (&weights)[Team::kPairs][4], int first_token) {
    if constexpr (Team::kWarpsPerStrip > 1) {
      T* target = &shared_->weights[Team::kFirstStrip + strip_][lane_ / 4][first_token + lane_ % 4 * 2];
#pragma unroll
      for (int pair = 0; pair < Team::kPairs; ++pair) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_shared(reinterpret_cast<uint32_t*>(target + i % 2 * 8 * Traits::kWeightStride + pair * 16 + i / 2 * 8),
                       weights[pair][i]);
        }
      }
      synchronize_strip<Team>();
    }
  }

  // The weights of all rows of the strip and 16 tokens.
  template <typename Team>
  APAR_DEVICE void load_weights(uint32_t (&a)[4], const uint32_t (&weights)[Team::kPairs][4], int sixteen) {
    if constexpr (Team::kWarpsPerStrip > 1) {
      load_matrices_x4(a, shared_address(&shared_->weights[Team::kFirstStrip + strip_][lane_ % 16][lane_ / 16 * 8]) +
                              sixteen * 16 * static_cast<int>(sizeof(T)));
    } else {
      // A loop over them that is not unrolled keeps the program short.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = weights[0][i];
#pragma unroll
        for (int pair = 1; pair < Team::kPairs; ++pair) a[i] = sixteen == pair ? weights[pair][i] : a[i];
      }
    }
  }

  // Strip x the warp's share of the columns; 16 tokens that nobody in the strip sees are left out.
  template <typename Team>
  APAR_DEVICE void add_values(const uint32_t (&weights)[Team::kPairs][4], uint32_t values, uint32_t sixteens,
                              const Mask& mask) {
    const uint32_t one = pack<T>(1.0f, 1.0f);
    const Fragments fragments(lane_);
    const uint32_t source = fragments.value_address(values, warp_in_strip_);
    // Both of a step are loaded together where a load brings 32 tokens.
    constexpr int kSteps = Fragments::kSixteensPerLoad;
    bool some_not_finite = false;
#pragma unroll 1
    for (int sixteen = 0; sixteen < kTokens / 16; sixteen += kSteps) {
      if ((sixteens >> sixteen & ((1u << kSteps) - 1)) == 0) continue;
      uint32_t a[kSteps][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        load_weights<Team>(a[step], weights, sixteen + step);
        multiply_accumulate<T>(segment_sum_, a[step], one, one);
      }
#pragma unroll
      for (int unit = 0; unit < Team::kUnits; ++unit) {
        if (!has_unit<Team>(unit)) continue;
        uint32_t raw[4];
        fragments.template load_values<Team>(raw, source, unit, sixteen);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          uint32_t b[4];
          fragments.take_values(b, raw, step);
          if (mask.masked && fragments.any_not_finite(b)) {
            fragments.clear_not_finite(b);
            some_not_finite = true;
          }
          multiply_accumulate<T>(outputs_[unit][0], a[step], b[0], b[1]);
          multiply_accumulate<T>(outputs_[unit][1], a[step], b[2], b[3]);
        }
      }
    }
    if (some_not_finite) add_not_finite<Team>(weights, source, mask);
  }

  // What the product left out. Rare: the loop over units stays a loop, and the outputs take turns in the first place.
  template <typename Team>
  APAR_DEVICE void add_not_finite(const uint32_t (&weights)[Team::kPairs][4], uint32_t source, const Mask& mask) {
    const Fragments fragments(lane_);
    constexpr int kSteps = Fragments::kSixteensPerLoad;
#pragma unroll 1
    for (int unit = 0; unit < Team::kUnits; ++unit) {
#pragma unroll 1
      for (int sixteen = 0; has_unit<Team>(unit) && sixteen < kTokens / 16; ++sixteen) {
        uint32_t a[4], raw[4], b[4];
        load_weights<Team>(a, weights, sixteen);
        fragments.template load_values<Team>(raw, source, unit, sixteen / kSteps * kSteps);
        fragments.take_values(b, raw, sixteen % kSteps);
        fragments.add_not_finite(outputs_[0], b, a, mask, sixteen * 16);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float first = outputs_[0][i / 4][i % 4];
#pragma unroll
        for (int u = 0; u + 1 < Team::kUnits; ++u) outputs_[u][i / 4][i % 4] = outputs_[u + 1][i / 4][i % 4];
        outputs_[Team::kUnits - 1][i / 4][i % 4] = first;
      }
    }
  }

  // Units of 16 columns are dealt out in turn.
  template <typename Team>
  APAR_DEVICE bool has_unit(int unit) const {
    return Team::kColumnUnits % Team::kWarpsPerStrip == 0 ||
           unit * Team::kWarpsPerStrip + warp_in_strip_ < Team::kColumnUnits;
  }
  template <typename Team>
  APAR_DEVICE int first_column_of(int unit) const {
    return (unit * Team::kWarpsPerStrip + warp_in_strip_) * 16;
  }

  // ---- segments and items

  template <int kUnits>
  APAR_DEVICE void start_segment() {
#pragma unroll
    for (int i = 0; i < 4; ++i) segment_sum_[i] = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) segment_maximum_[half] = minus_infinity();
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int i = 0; i < 8; ++i) outputs_[unit][i / 4][i % 4] = 0.0f;
    }
    segment_used_ = false;
  }

  APAR_DEVICE void start_item(const Block<Traits::kMaxRows>* block) {
    q_row_ = load_shared(&block->q_row);
    unit_ = load_shared(&block->unit);
    const WorkItem* item = &block->item;
    index_ = load_shared(&item->index);
    leaves_segments_ = load_shared(&item->leaves_segments) != 0;
    const int first_packed = load_shared(&item->first_packed), num_packed = load_shared(&item->num_packed);
    strips_ = num_packed <= 32 ? 2 : num_packed <= 64 ? 4 : 8;
    strip_ = warp_index() % strips_;
    warp_in_strip_ = warp_index() / strips_;
    const int first_row = first_packed / params_.group_size;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int packed = strip_ * 16 + half * 8 + lane_ / 4;
      row_[half] = packed < num_packed ? (first_packed + packed) / params_.group_size - first_row : -1;
    }
    score_scale_ = arguments_.score_scale;
    if (params_.k_scale != nullptr) score_scale_.before *= load_constant(params_.k_scale + head());
    partials_written_ = 0;
    total_state_[0] = total_state_[1] = empty_state();
    total_is_empty_ = true;
    start_segment<Traits::kMaxUnits>();
  }

  // Where this thread keeps number i of a unit of the total, for a team of eight strips.
  APAR_DEVICE float* shared_total(int unit, int i) const {
    return totals_ + (unit * 8 + i) * Traits::kComputeThreads + thread_index();
  }

  // Folds the segment into the item's total, or leaves it to the merge.
  template <typename Team>
  APAR_DEVICE void finish_segment() {
    if (leaves_segments_) {
      const SoftmaxState states[2] = {{segment_maximum_[0], segment_sum_[0]}, {segment_maximum_[1], segment_sum_[2]}};
      if (segment_used_) write_partial<Team, 0>(states);
    } else if (segment_used_) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const SoftmaxState next{segment_maximum_[half], segment_sum_[2 * half]};
        const bool changes = folds(next);
        if (!changes && (!Team::kTotalIsShared || !total_is_empty_)) continue;
        const FoldFactors factors = changes ? fold(total_state_[half], next) : FoldFactors{0.0f, 0.0f};
#pragma unroll
        for (int unit = 0; unit < Team::kUnits; ++unit) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float addend = outputs_[unit][i / 2][2 * half + i % 2];
            if constexpr (Team::kTotalIsShared) {
              float* place = shared_total(unit, 4 * half + i);
              const float total = total_is_empty_ ? 0.0f : load_shared(place);
              store_shared(place, changes ? fold_output(total, addend, factors) : 0.0f);
            } else {
              float& total = outputs_[Team::kUnits + unit][i / 2][2 * half + i % 2];
              total = fold_output(total, addend, factors);
            }
          }
        }
      }
      total_is_empty_ = false;
    }
    start_segment<Team::kUnits>();
  }

  APAR_DEVICE int head() const { return unit_ % params_.num_kv_heads; }
  // Packed rows of the item before this part.
  APAR_DEVICE int skipped() const { return unit_ / params_.num_kv_heads * arguments_.shared.rows; }

  template <typename Team>
  APAR_DEVICE void finish_item() {
    if (index_ < 0) return;  // before the first
    const WorkItem* item = params_.items + index_;
    constexpr int kTotal = Team::kTotalIsShared ? 0 : Team::kUnits;
    if constexpr (Team::kTotalIsShared) {
      // The segment's registers are free.
      if (!total_is_empty_) {
#pragma unroll
        for (int unit = 0; unit < Team::kUnits; ++unit) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            outputs_[unit][i % 4 / 2][i / 4 * 2 + i % 2] = load_shared(shared_total(unit, i));
          }
        }
      }
    }
    if (load_constant(&item->merge) < 0) {
      write_output<Team, kTotal>(load_constant(&item->first_packed) + skipped());
    } else {
      if (!leaves_segments_) write_partial<Team, kTotal>(total_state_);
      arrive_and_merge<T, Traits::kHeadDim>(arguments_, Traits::kHeadDim, index_, unit_, partials_written_,
                                            &shared_->arrived, Traits::kComputeThreads);
    }
  }

  // Outputs from outputs_[kFirst] on.
  template <typename Team, int kFirst>
  APAR_DEVICE void write_output(int first_packed) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_[half] < 0) continue;
      const OutputPlace place = output_place(params_, first_packed + strip_ * 16 + half * 8 + lane_ / 4, head());
      SoftmaxState state = total_state_[half];
      const float factor = final_factor(params_, state, place.query_head, head());
#pragma unroll
      for (int unit = 0; unit < Team::kUnits; ++unit) {
        if (!has_unit<Team>(unit)) continue;
#pragma unroll
        for (int two = 0; two < 2; ++two) {
          T* target = static_cast<T*>(params_.out) + place.index * Traits::kHeadDim + first_column_of<Team>(unit) +
                      Fragments::column_of(lane_, two);
          store_global(reinterpret_cast<uint32_t*>(target),
                       pack<T>(finished(Fragments::output_of(outputs_[kFirst + unit], half, two, 0), factor),
                               finished(Fragments::output_of(outputs_[kFirst + unit], half, two, 1), factor)));
        }
      }
      if (params_.lse != nullptr && warp_in_strip_ == 0 && lane_ % 4 == 0) {
        store_global(params_.lse + place.index, natural_lse(state));
      }
    }
  }

  // ---- partial results

  template <typename Team, int kFirst>
  APAR_DEVICE void write_partial(const SoftmaxState (&states)[2]) {
    const WorkItem* item = params_.items + index_;
    const int before = partials_written_++ * strips_of(item) + skipped() / kStripRows;
    const PartialResult partial(params_, Traits::kHeadDim, load_constant(&item->partial) + before + strip_, head());
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + lane_ / 4;
      if (row_[half] < 0) continue;
#pragma unroll
      for (int unit = 0; unit < Team::kUnits; ++unit) {
        // Of a row that saw nothing nobody reads more than the sum.
        if (!has_unit<Team>(unit) || !folds(states[half])) continue;
#pragma unroll
        for (int two = 0; two < 2; ++two) {
          store_global(reinterpret_cast<Pair*>(
                           partial.output(row, first_column_of<Team>(unit) + Fragments::column_of(lane_, two))),
                       Pair{Fragments::output_of(outputs_[kFirst + unit], half, two, 0),
                            Fragments::output_of(outputs_[kFirst + unit], half, two, 1)});
        }
      }
      if (warp_in_strip_ == 0 && lane_ % 4 == 0) {
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
  const int lane_;

  // the item
  int strips_ = 2, strip_ = 0, warp_in_strip_ = 0;
  int index_ = -1, unit_ = 0, q_row_ = 0, partials_written_ = 0;
  bool leaves_segments_ = false;  // to the merge, since its total goes on from another item's
  int row_[2] = {-1, -1};         // of this thread's packed rows lane / 4 and lane / 4 + 8 of the strip; -1: none
  ScoreScale score_scale_{};
  bool segment_used_ = false;
  // Outputs in the layout of the matrix instruction: units of 16 columns, two tiles of 8 each. Sums stand in all
  // columns.
  float segment_maximum_[2];
  float segment_sum_[4];
  SoftmaxState total_state_[2];
  // The segment's, then the total's; the total of a team of eight strips lies in shared memory.
  float outputs_[Traits::kMaxUnits][2][4];
  bool total_is_empty_ = true;
};

}  // namespace apar::cuda
