// Four fp32 lanes in plain C++, for any CPU: the compiler's own vectors, which become SSE2, NEON or scalar code. Also
// the readable form of what vec_avx2.h and vec_avx512.h do.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/numbers.h"

namespace apar::cpu {
namespace {

struct Vec {
  using Float = float __attribute__((vector_size(16)));
  using Int = int32_t __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kBlockRows = 6;  // register block of the matrix kernels
  static constexpr int kBlockCols = 2;

  static Float zero() { return Float{}; }
  static Float broadcast(float x) { return Float{x, x, x, x}; }
  static Float load(const float* p) {
    Float x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  static void store(float* p, Float x) { std::memcpy(p, &x, sizeof(x)); }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  static Float max(Float a, Float b) { return a > b ? a : b; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static Float abs(Float x) { return (Float)((Int)x & 0x7fffffff); }
  static Float copy_sign(Float x, Float sign) { return (Float)((Int)abs(x) | ((Int)sign & INT32_MIN)); }
  // a < b ? x : y
  static Float select_less(Float a, Float b, Float x, Float y) { return a < b ? x : y; }
  // Lanes from begin to end - 1 of x, the others of y; begin and end may lie outside the lanes.
  static Float select_range(int32_t begin, int32_t end, Float x, Float y) {
    const Int lane = {0, 1, 2, 3};
    return ((lane >= begin) & (lane < end)) ? x : y;
  }
  static float reduce_max(Float x) {
    const float low = x[0] > x[2] ? x[0] : x[2], high = x[1] > x[3] ? x[1] : x[3];
    return low > high ? low : high;
  }
  static float reduce_add(Float x) { return (x[0] + x[2]) + (x[1] + x[3]); }

  // Right for |x| < 2^22; larger values stay integral anyway where it is used.
  static Float round(Float x) {
    const Float magic = broadcast(12582912.0f);  // 1.5 * 2^23
    return abs(x) < broadcast(4194304.0f) ? (x + magic) - magic : x;
  }
  // x * 2^n for integral n up to 127; 0 below -125. x is near 1.
  static Float scale_by_power(Float x, Float n) {
    const Float lowest = broadcast(-126.0f);
    const Float bounded = n > lowest ? n : lowest;
    const Int power = (__builtin_convertvector(bounded, Int) + 127) << 23;
    return n <= lowest ? zero() : x * (Float)power + (n - n);  // n - n carries a NaN on
  }

  static Float load_f16(const uint16_t* p) {
    return Float{float16_to_float(p[0]), float16_to_float(p[1]), float16_to_float(p[2]), float16_to_float(p[3])};
  }
  static Float load_bf16(const uint16_t* p) {
    return (Float)(Int{int32_t(uint32_t{p[0]} << 16), int32_t(uint32_t{p[1]} << 16), int32_t(uint32_t{p[2]} << 16),
                       int32_t(uint32_t{p[3]} << 16)});
  }
  static Float load_e4m3(const uint8_t* p) {
    return Float{e4m3_to_float(p[0]), e4m3_to_float(p[1]), e4m3_to_float(p[2]), e4m3_to_float(p[3])};
  }
  static void store_f16(uint16_t* p, Float x) {
    for (int i = 0; i < 4; ++i) p[i] = to_f16(x[i]);
  }
  static void store_bf16(uint16_t* p, Float x) {
    for (int i = 0; i < 4; ++i) p[i] = to_bf16(x[i]);
  }

  static void transpose(Float (&v)[4]) {
    Float a[4];
    for (int i = 0; i < 4; ++i) a[i] = Float{v[0][i], v[1][i], v[2][i], v[3][i]};
    for (int i = 0; i < 4; ++i) v[i] = a[i];
  }

 private:
  static uint16_t to_f16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds past 65504
    if (magnitude < 0x38800000) {                                 // subnormal: let an addition do the rounding
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
    }
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  }
  static uint16_t to_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

}  // namespace
}  // namespace apar::cpu
