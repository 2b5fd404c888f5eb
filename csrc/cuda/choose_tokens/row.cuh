// A row of logits that a block of threads walks over as often as it needs (it stays in the second-level cache), and the
// block's sums and maxima. No shared memory but what the block's reductions get.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/choose_tokens.h"
#include "core/token_rules.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kRowThreads = 1024;
constexpr int kRowWarps = kRowThreads / kWarpSize;

APAR_DEVICE float minus_infinity() { return logit_of_rank(0x007fffffu); }

// Element: float, Half or BFloat16. Vectors of 16 bytes are counted from the boundary at or before the first logit, and
// every warp has a run of them; so a row may begin anywhere.
template <typename Element>
class LogitRow {
 public:
  static constexpr int kPerVector = 16 / static_cast<int>(sizeof(Element));

  APAR_DEVICE LogitRow(const LogitRows& rows, int row)
      : logits_(static_cast<const Element*>(rows.logits) + row * rows.row_stride),
        columns_(static_cast<int>(rows.columns)),
        forbidden_{static_cast<int>(rows.child_token),
                   load_constant(rows.may_fork + row) != 0 ? -1 : static_cast<int>(rows.fork_token)} {
    const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(logits_) % 16 / sizeof(Element));
    first_token_ = -lead;
    num_vectors_ = (lead + columns_ + kPerVector - 1) / kPerVector;
    per_warp_ = (num_vectors_ + kRowThreads - 1) / kRowThreads * kWarpSize;
  }

  // The run of this warp: a lane's vectors are begin + lane, and every 32nd from there.
  APAR_DEVICE int begin() const { return warp_index() * per_warp_; }
  APAR_DEVICE int end() const {
    const int end = begin() + per_warp_;
    return end < num_vectors_ ? end : num_vectors_;
  }

  // Calls visit(token, logit) for the tokens of a vector, in order; none of a vector that the row does not have.
  template <typename Visit>
  APAR_DEVICE void visit_vector(int vector, Visit&& visit) const {
    const int first = first_token_ + vector * kPerVector;
    if (vector < num_vectors_ && first >= 0 && first + kPerVector <= columns_) {
      const Vector<16> loaded = load_constant(reinterpret_cast<const Vector<16>*>(logits_ + first));
      Element elements[kPerVector];
      memcpy(elements, &loaded, sizeof(loaded));
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) visit(first + i, allowed(first + i, to_float(elements[i])));
    } else {
      for (int i = 0; i < kPerVector; ++i) {
        const int token = first + i;
        if (token < 0 || token >= columns_) continue;
        const auto loaded = load_once(reinterpret_cast<const Vector<sizeof(Element)>*>(logits_ + token));
        Element element;
        memcpy(&element, &loaded, sizeof(loaded));
        visit(token, allowed(token, to_float(element)));
      }
    }
  }

  // For the block as a whole: every token once.
  template <typename Visit>
  APAR_DEVICE void visit_all(Visit&& visit) const {
    for (int vector = begin() + lane_index(); vector < end(); vector += kWarpSize) visit_vector(vector, visit);
  }

 private:
  APAR_DEVICE float allowed(int token, float logit) const {
    return token == forbidden_[0] || token == forbidden_[1] ? minus_infinity() : logit;
  }

  const Element* logits_;
  int columns_;
  int forbidden_[2];
  int first_token_;
  int num_vectors_;
  int per_warp_;
};

// ---- reductions over the block; every thread gets the result. `space`: kRowWarps numbers for each value.

template <int count, typename Combine>
APAR_DEVICE void reduce_block(uint64_t (&values)[count], uint64_t* space, Combine&& combine) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) values[i] = combine(values[i], shuffle_xor(values[i], mask));
    if (lane_index() == 0) store_shared(space + i * kRowWarps + warp_index(), values[i]);
  }
  synchronize_block();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    values[i] = load_shared(space + i * kRowWarps + lane_index());
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) values[i] = combine(values[i], shuffle_xor(values[i], mask));
  }
  synchronize_block();  // the space may be written again
}

struct Sum {
  APAR_DEVICE uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Maximum {
  APAR_DEVICE uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// The largest logit, and the first token that has it; token -1 where one is NaN or the largest is not finite.
struct Best {
  float logit;
  int token;
};

template <typename Element>
APAR_DEVICE Best best_of(const LogitRow<Element>& row, uint64_t* space) {
  // Rank above, inverted token below: the maximum has the largest logit and the smallest token. 0: nothing seen.
  uint64_t best[1] = {0};
  bool is_nan = false;
  row.visit_all([&](int token, float logit) {
    if (logit != logit) {
      is_nan = true;
      return;
    }
    const uint64_t rated = static_cast<uint64_t>(logit_rank(logit)) << 32 | ~static_cast<uint32_t>(token);
    best[0] = rated > best[0] ? rated : best[0];
  });
  is_nan = any_in_block(is_nan);
  reduce_block(best, space, Maximum());
  const float logit = logit_of_rank(static_cast<uint32_t>(best[0] >> 32));
  const bool is_finite = logit - logit == 0.0f;
  return {logit, is_nan || !is_finite || best[0] == 0 ? -1 : static_cast<int>(~static_cast<uint32_t>(best[0]))};
}

}  // namespace apar::cuda
