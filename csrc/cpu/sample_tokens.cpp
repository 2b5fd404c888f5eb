#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "core/token_rules.h"
#include "cpu/choose_tokens.h"
#include "cpu/logits.h"

namespace apar::cpu {
namespace {

// A token by what it is filtered for: larger logits first, of equals the smaller id.
struct Candidate {
  float logit;
  int32_t token;
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit < other.logit : token > other.token;
  }
};

class Sampler {
 public:
  Sampler(const SampleTokensParams& params, std::vector<float> logits) : params_(params), logits_(std::move(logits)) {}

  int32_t choose(uint64_t number) {
    float best = kMinusInfinity;
    for (const float logit : logits_) {
      if (std::isnan(logit)) return -1;
      best = std::max(best, logit);
    }
    if (!std::isfinite(best)) return -1;
    weights_.resize(logits_.size());
    for (size_t i = 0; i < logits_.size(); ++i) weights_[i] = token_weight(logits_[i], best, params_.factor);
    if (params_.top_k > 0 && params_.top_k < static_cast<int64_t>(logits_.size())) keep_top_k();
    if (params_.top_p > 0) keep_top_p();
    return pick(number);
  }

 private:
  uint64_t total() const {
    uint64_t sum = 0;
    for (const uint64_t weight : weights_) sum += weight;
    return sum;
  }

  void keep_top_k() {
    std::vector<float> sorted = logits_;
    const auto last = sorted.begin() + (params_.top_k - 1);
    std::nth_element(sorted.begin(), last, sorted.end(), std::greater<float>());
    for (size_t i = 0; i < logits_.size(); ++i) {
      if (logits_[i] < *last) weights_[i] = 0;
    }
  }

  void keep_top_p() {
    const uint64_t bound = top_p_bound(params_.top_p, total());
    std::vector<Candidate> candidates;
    for (size_t i = 0; i < logits_.size(); ++i) {
      if (weights_[i] > 0) candidates.push_back({logits_[i], static_cast<int32_t>(i)});
    }
    std::make_heap(candidates.begin(), candidates.end());
    auto end = candidates.end();
    // What stays is taken from the heap; the rest is never sorted.
    for (uint64_t before = 0; before < bound && end != candidates.begin(); --end) {
      before += weights_[candidates.front().token];
      std::pop_heap(candidates.begin(), end);
    }
    for (auto gone = candidates.begin(); gone != end; ++gone) weights_[gone->token] = 0;
  }

  int32_t pick(uint64_t number) const {
    const uint64_t place = drawn_place(number, total());
    uint64_t sum = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      sum += weights_[i];
      if (sum > place) return static_cast<int32_t>(i);
    }
    return -1;  // not reached: the place is under the total
  }

  const SampleTokensParams& params_;
  const std::vector<float> logits_;
  std::vector<uint64_t> weights_;
};

}  // namespace

void sample_tokens(const SampleTokensParams& params, const ParallelFor& parallel_for) {
  for_each_logit_row(params.rows, 1 << 13, parallel_for, [&params](const auto& row, int64_t index) {
    std::vector<float> logits(static_cast<size_t>(params.rows.columns));
    row.read(0, params.rows.columns, logits.data());
    params.tokens[index] = Sampler(params, std::move(logits)).choose(params.numbers[index]);
  });
}

void draw_numbers(const DrawNumbersParams& params) {
  constexpr int64_t kOpenedColumns = 6;  // slot, branch_id, parent_branch_id, request, fork_position, child_index
  for (int64_t i = 0; i < *params.num_opened; ++i) {
    const int32_t* opened = params.opened + i * kOpenedColumns;
    params.keys[opened[0]] = child_key(params.keys[params.parent[opened[0]]], opened[5]);
  }
  for (int64_t row = 0; row < params.rows; ++row) {
    const int32_t slot = params.row_slot[row];
    params.numbers[row] = slot < 0 ? 0 : random_number(params.keys[slot], params.row_position[row] + 1);
  }
}

}  // namespace apar::cpu
