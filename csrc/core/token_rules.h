// The arithmetic of sampling, in integers and in single operations that every machine rounds alike: sums do not depend
// on their order, so all implementations choose the same token, whatever the batch. docs/decoder.md derives it.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace apar {

// ---- random numbers ----

constexpr uint64_t kCounterStep = 0x9E3779B97F4A7C15u;  // 2^64 over the golden ratio: neighbours land far apart

// A bijection that spreads every input bit over all output bits (the SplitMix64 finaliser).
APAR_HOST_DEVICE inline uint64_t mix_bits(uint64_t value) {
  value += kCounterStep;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}
// Of a branch, from its parent's key and its number among the parent's children.
APAR_HOST_DEVICE inline uint64_t child_key(uint64_t parent_key, int32_t child_index) {
  return mix_bits(parent_key + (static_cast<uint64_t>(child_index) + 1) * kCounterStep);
}
// For the token that is to stand at `position`.
APAR_HOST_DEVICE inline uint64_t random_number(uint64_t key, int32_t position) {
  return mix_bits(key + static_cast<uint64_t>(position) * kCounterStep);
}

// The upper half of a product.
APAR_HOST_DEVICE inline uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// The drawn place in [0, total): floor(number / 2^53 * total), from the number's upper 53 bits.
APAR_HOST_DEVICE inline uint64_t drawn_place(uint64_t number, uint64_t total) {
  return multiply_high(number >> 11 << 11, total);
}

// ceil(top_p / 2^64 * total): a token stays while those before it weigh less.
APAR_HOST_DEVICE inline uint64_t top_p_bound(uint64_t top_p, uint64_t total) {
  return multiply_high(top_p, total) + (top_p * total != 0 ? 1 : 0);
}

// ---- weights ----

// One rounding each, never fused; host files that include this are compiled without contraction.
APAR_HOST_DEVICE inline float exact_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
APAR_HOST_DEVICE inline float exact_sum(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

constexpr int32_t kWeightBits = 40;  // 2^24 tokens of the largest weight still have a sum of 64 bits

// How likely a token is, as a multiple of 2^-40 of the likeliest one: 2^((logit - best) * factor), right to 1e-6, 0
// below 2^-41. best: finite, at least `logit`; factor: finite, over 0.
APAR_HOST_DEVICE inline uint64_t token_weight(float logit, float best, float factor) {
  const float power = exact_product(exact_sum(logit, -best), factor);
  if (!(power > -41.0f)) return 0;
  const int32_t whole = static_cast<int32_t>(exact_sum(power, -0.5f));  // to the nearest, since towards zero
  const float rest = exact_sum(power, -static_cast<float>(whole));      // -0.5 to 0.5
  float value = 1.52527338e-5f;                                         // the series of 2^rest
  value = exact_sum(exact_product(value, rest), 1.54035304e-4f);
  value = exact_sum(exact_product(value, rest), 1.33335581e-3f);
  value = exact_sum(exact_product(value, rest), 9.61812911e-3f);
  value = exact_sum(exact_product(value, rest), 5.55041087e-2f);
  value = exact_sum(exact_product(value, rest), 2.40226507e-1f);
  value = exact_sum(exact_product(value, rest), 6.93147181e-1f);
  value = exact_sum(exact_product(value, rest), 1.0f);
  const uint64_t mantissa = static_cast<uint32_t>(exact_product(value, 8388608.0f));  // times 2^23
  return mantissa << (kWeightBits - 23) >> -whole;
}

// ---- order ----

// Numbers that are ordered as logits are; 0 and -0 are one. No NaN.
APAR_HOST_DEVICE inline uint32_t logit_rank(float logit) {
  const float value = exact_sum(logit, 0.0f);
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
APAR_HOST_DEVICE inline float logit_of_rank(uint32_t rank) {
  const uint32_t bits = rank >> 31 != 0 ? rank & 0x7fffffffu : ~rank;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace apar
