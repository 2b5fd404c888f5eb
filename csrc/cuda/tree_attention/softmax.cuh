// The state of an online softmax over scores in units of log2, and the one way in which states are folded: kernels,
// merges and sinks all use it, so the same states in the same order give the same bits wherever they meet.
#pragma once

#include "cuda/device.cuh"

namespace apar::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

APAR_DEVICE float minus_infinity() { return -__builtin_inff(); }

// The weights' sum relative to 2^maximum. No entry seen: maximum -inf, sum 0.
struct SoftmaxState {
  float maximum;
  float sum;
};

APAR_DEVICE SoftmaxState empty_state() { return {minus_infinity(), 0.0f}; }

// What outputs on either side of a fold are multiplied with.
struct FoldFactors {
  float total;
  float next;
};

// total <- total, next. A state that saw nothing changes nothing, exactly; one with a NaN does.
APAR_DEVICE bool folds(const SoftmaxState& next) { return next.sum != 0.0f; }
APAR_DEVICE FoldFactors fold(SoftmaxState& total, const SoftmaxState& next) {
  const float maximum = max_of(total.maximum, next.maximum);
  const float base = maximum == minus_infinity() ? 0.0f : maximum;
  const FoldFactors factors{exp2_fast(total.maximum - base), exp2_fast(next.maximum - base)};
  total.maximum = maximum;
  total.sum = multiply_add(total.sum, factors.total, next.sum * factors.next);
  return factors;
}
APAR_DEVICE float fold_output(float total, float next, const FoldFactors& factors) {
  return multiply_add(total, factors.total, next * factors.next);
}

// A sink is one more score without a value. Returns the factor of the outputs.
APAR_DEVICE float fold_sink(SoftmaxState& total, float sink) {
  return fold(total, SoftmaxState{sink * kLog2E, 1.0f}).total;
}

APAR_DEVICE float output_factor(const SoftmaxState& total) { return total.sum == 0.0f ? 0.0f : 1.0f / total.sum; }
APAR_DEVICE float natural_lse(const SoftmaxState& total) {
  return total.sum == 0.0f ? minus_infinity() : multiply_add(total.maximum, kLn2, log_exact(total.sum));
}

// From a product of query and key to a score in units of log2.
struct ScoreScale {
  float before;   // multiplies the product
  float softcap;  // 0: none; in units of log2
};
inline ScoreScale make_score_scale(float scale, float softcap) {
  return softcap > 0.0f ? ScoreScale{scale / softcap, softcap * kLog2E} : ScoreScale{scale * kLog2E, 0.0f};
}
APAR_DEVICE float score(float product, const ScoreScale& scale) {
  const float scaled = product * scale.before;
  return scale.softcap > 0.0f ? tanh_exact(scaled) * scale.softcap : scaled;
}

}  // namespace apar::cuda
