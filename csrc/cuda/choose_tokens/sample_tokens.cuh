// sample_tokens: one block per row, which reads it several times: for the largest logit; for each filter a search for
// the logit where it cuts, which divides the ranks in eight at every reading; for the weight of every warp's run of
// tokens; and in the one run that holds the drawn place, for the token.
//
// All sums are sums of integers, so no result depends on who adds what.
#pragma once

#include "cuda/choose_tokens/row.cuh"

namespace apar::cuda {

constexpr int kPivots = 7;
constexpr int kSampleSharedBytes = kPivots * kRowWarps * static_cast<int>(sizeof(uint64_t));
constexpr int kAllTies = 0x7fffffff;

// Ranks of logits of this type differ in the bits from here on.
template <typename Element>
constexpr int kRankShift = 0;
template <>
inline constexpr int kRankShift<Half> = 13;
template <>
inline constexpr int kRankShift<BFloat16> = 16;

// The largest rank such that the tokens of this rank and above it weigh at least `bound`, which all tokens together do.
// weigh(rank, logit): of a token.
template <typename Element, typename Weigh>
APAR_DEVICE uint32_t find_cut(const LogitRow<Element>& row, uint32_t highest, uint64_t bound, uint64_t* space,
                              Weigh&& weigh) {
  // In units of the distance of ranks: those from `low` on weigh enough, those from `low` + `width` on do not.
  constexpr int kShift = kRankShift<Element>;
  uint32_t low = 0, width = (highest >> kShift) + 1;
  while (width > 1) {
    const uint32_t stride = (width + kPivots) / (kPivots + 1);
    uint64_t sums[kPivots] = {};
    row.visit_all([&](int, float logit) {
      const uint32_t rank = logit_rank(logit), above = (rank >> kShift) - low;
      if (rank >> kShift < low + stride) return;
      const uint64_t weight = weigh(rank, logit);
#pragma unroll
      for (int i = 0; i < kPivots; ++i) sums[i] += above >= (i + 1) * stride ? weight : 0;
    });
    reduce_block(sums, space, Sum());
    uint32_t steps = 0;
#pragma unroll
    for (int i = 0; i < kPivots; ++i) steps += sums[i] >= bound ? 1 : 0;
    const uint32_t left = width - steps * stride;
    low += steps * stride;
    width = left < stride ? left : stride;
  }
  // All numbers of a rank that is kept have the same lower bits: zeros, or ones where the sign is set.
  return low << kShift;
}

template <typename Element>
APAR_KERNEL(kRowThreads, 1)
sample_tokens_kernel(APAR_GRID_CONSTANT SampleTokensParams params) {
  uint64_t* space = shared_memory<uint64_t>();
  const LogitRow<Element> row(params.rows, block_index());
  const Best best = best_of(row, space);
  if (best.token < 0) {
    if (thread_index() == 0) store_global(params.tokens + block_index(), -1);
    return;
  }
  const uint32_t highest = logit_rank(best.logit);
  const auto weight_of = [&](float logit) { return token_weight(logit, best.logit, params.factor); };
  constexpr int kShift = kRankShift<Element>;

  // ---- filters: what is above `cut` stays, and of the tokens at it the first `ties`. In units of 1 << kShift.

  uint32_t cut = 0;
  uint64_t ties = kAllTies;
  if (params.top_k > 0 && params.top_k < params.rows.columns) {
    cut =
        find_cut(row, highest, static_cast<uint64_t>(params.top_k), space, [](uint32_t, float) { return uint64_t{1}; });
  }
  if (params.top_p > 0) {
    const uint32_t least = cut;
    const auto kept_weight = [&](uint32_t rank, float logit) {
      return rank >> kShift << kShift >= least ? weight_of(logit) : 0;
    };
    uint64_t sums[1] = {0};
    row.visit_all([&](int, float logit) { sums[0] += kept_weight(logit_rank(logit), logit); });
    reduce_block(sums, space, Sum());
    const uint64_t bound = top_p_bound(params.top_p, sums[0]);
    cut = find_cut(row, highest, bound, space, kept_weight);
    // The tokens above weigh less than the bound; so many of those at the cut fill it up.
    uint64_t above_and_tie[2] = {0, 0};
    row.visit_all([&](int, float logit) {
      const uint32_t rank = logit_rank(logit) >> kShift << kShift;
      if (rank > cut) above_and_tie[0] += weight_of(logit);
      if (rank == cut) above_and_tie[1] = weight_of(logit);
    });
    uint64_t above[1] = {above_and_tie[0]}, tie[1] = {above_and_tie[1]};
    reduce_block(above, space, Sum());
    reduce_block(tie, space, Maximum());
    ties = (bound - above[0] + tie[0] - 1) / tie[0];
  }

  // ---- weight and ties of every warp's run; the run that holds the drawn place

  uint64_t mine[3] = {0, 0, 0};  // weight above the cut, tokens at it, weight of one of them
  row.visit_all([&](int, float logit) {
    const uint32_t rank = logit_rank(logit) >> kShift << kShift;
    if (rank > cut) mine[0] += weight_of(logit);
    if (rank == cut) {
      ++mine[1];
      mine[2] = weight_of(logit);
    }
  });
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    mine[0] += shuffle_xor(mine[0], mask);
    mine[1] += shuffle_xor(mine[1], mask);
    mine[2] = Maximum()(mine[2], shuffle_xor(mine[2], mask));
  }
  if (lane_index() == 0) {
    for (int i = 0; i < 3; ++i) store_shared(space + i * kRowWarps + warp_index(), mine[i]);
  }
  synchronize_block();
  const auto kept_of_run = [&](int warp, uint64_t ties_before) {
    const uint64_t at_cut = load_shared(space + kRowWarps + warp);
    const uint64_t room = ties > ties_before ? ties - ties_before : 0;
    return load_shared(space + warp) + (at_cut < room ? at_cut : room) * load_shared(space + 2 * kRowWarps + warp);
  };
  uint64_t total = 0, ties_before = 0;
  for (int warp = 0; warp < kRowWarps; ++warp) {
    total += kept_of_run(warp, ties_before);
    ties_before += load_shared(space + kRowWarps + warp);
  }
  const uint64_t place = drawn_place(load_constant(params.numbers + block_index()), total);
  int owner = 0;
  uint64_t before = 0;  // weight kept before the run
  ties_before = 0;
  for (;; ++owner) {
    const uint64_t kept = kept_of_run(owner, ties_before);
    if (before + kept > place) break;
    before += kept;
    ties_before += load_shared(space + kRowWarps + owner);
  }
  if (warp_index() != owner) return;

  // ---- the token: 32 vectors at a time

  for (int base = row.begin(); base < row.end(); base += kWarpSize) {
    const int vector = base + lane_index();
    uint64_t num_ties = 0;
    row.visit_vector(vector,
                     [&](int, float logit) { num_ties += logit_rank(logit) >> kShift << kShift == cut ? 1 : 0; });
    uint64_t ties_up_to = num_ties;
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const uint64_t below = shuffle_up(ties_up_to, distance);
      if (lane_index() >= distance) ties_up_to += below;
    }
    // Of a token, while the ties of this vector are met in order.
    const auto kept_weight = [&](float logit, uint64_t& ties_met) {
      const uint32_t rank = logit_rank(logit) >> kShift << kShift;
      if (rank == cut && ties_met++ >= ties) return uint64_t{0};
      return rank >= cut ? weight_of(logit) : 0;
    };
    const uint64_t first_tie = ties_before + ties_up_to - num_ties;
    uint64_t ties_met = first_tie, weight = 0;
    row.visit_vector(vector, [&](int, float logit) { weight += kept_weight(logit, ties_met); });
    uint64_t weight_up_to = weight;
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const uint64_t below = shuffle_up(weight_up_to, distance);
      if (lane_index() >= distance) weight_up_to += below;
    }
    const unsigned reached = ballot(before + weight_up_to > place);
    if (reached != 0) {
      // The lowest lane that reaches the place holds the token.
      if (before + weight_up_to > place && before + weight_up_to - weight <= place) {
        uint64_t sum = before + weight_up_to - weight;
        int chosen = -1;
        ties_met = first_tie;
        row.visit_vector(vector, [&](int token, float logit) {
          sum += kept_weight(logit, ties_met);
          if (chosen < 0 && sum > place) chosen = token;
        });
        store_global(params.tokens + block_index(), chosen);
      }
      return;
    }
    before += shuffle(weight_up_to, kWarpSize - 1);
    ties_before += shuffle(ties_up_to, kWarpSize - 1);
  }
}

}  // namespace apar::cuda
