// Numbers of few bits and fp32, by their bits: the same result on every device and under every floating-point mode.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace apar {

APAR_HOST_DEVICE inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
APAR_HOST_DEVICE inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

APAR_HOST_DEVICE inline float bfloat16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

APAR_HOST_DEVICE inline float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  // Subnormal: with the smallest normal number's exponent it is too large by that number.
  const float small = float_of((113u << 23) + (magnitude << 13)) - float_of(113u << 23);
  const uint32_t large = (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
  return float_of((magnitude < 0x400 ? bits_of(small) : large) | sign);
}

// e4m3: sign, 4 bits of exponent with bias 7, 3 of fraction. No infinity; 0x7f and 0xff are NaN, the largest is 448.
constexpr float kE4m3Largest = 448.0f;

APAR_HOST_DEVICE inline float e4m3_to_float(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24, magnitude = bits & 0x7f;
  const float small = float_of((121u << 23) + (magnitude << 20)) - float_of(121u << 23);
  const uint32_t large = magnitude == 0x7f ? 0x7fc00000u : (magnitude << 20) + (120u << 23);
  return float_of((magnitude < 8 ? bits_of(small) : large) | sign);
}

// The nearest, of two the even one; beyond 448 (infinity, too) 448; NaN is 0x7f whatever its sign. As the instruction
// cvt.rn.satfinite.e4m3x2.f32 does it.
APAR_HOST_DEVICE inline uint8_t float_to_e4m3(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  // Below 2^-6 a multiple of 2^-9, the last digit of 2^14: the addition rounds.
  const uint32_t small = bits_of(float_of(magnitude < 0x3c800000 ? magnitude : 0) + 16384.0f) - bits_of(16384.0f);
  const uint32_t normal = (magnitude + 0x7ffff + (magnitude >> 20 & 1) - (120u << 23)) >> 20;
  const uint32_t finite = magnitude < 0x3c800000 ? small : magnitude < bits_of(kE4m3Largest) ? normal : 0x7e;
  return static_cast<uint8_t>(magnitude > 0x7f800000 ? 0x7f : finite | sign);
}

}  // namespace apar
