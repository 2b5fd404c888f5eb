// Sixteen fp32 lanes of AVX-512. Include only in files compiled for it: the anonymous namespace keeps its code there.
#pragma once

// gcc 12 takes the deliberately undefined operands inside its own intrinsics for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

namespace apar::cpu {
namespace {

struct Vec {
  using Float = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kBlockRows = 6;  // register block of the matrix kernels: 6 x 4 sums, 4 loads, 1 broadcast
  static constexpr int kBlockCols = 4;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float x) { return _mm512_set1_ps(x); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float abs(Float x) { return _mm512_abs_ps(x); }
  static Float copy_sign(Float x, Float sign) {
    const __m512i bits = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bits, _mm512_castps_si512(sign), _mm512_castps_si512(x), 0xca));
  }
  // a < b ? x : y
  static Float select_less(Float a, Float b, Float x, Float y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
  }
  // Lanes from begin to end - 1 of x, the others of y; begin and end may lie outside the lanes.
  static Float select_range(int32_t begin, int32_t end, Float x, Float y) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 inside = _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(begin), _MM_CMPINT_NLT) &
                             _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(end), _MM_CMPINT_LT);
    return _mm512_mask_mov_ps(y, inside, x);
  }
  static float reduce_max(Float x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(Float x) { return _mm512_reduce_add_ps(x); }

  // Nearest integer, as a float.
  static Float round(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x * 2^n for integral n of any size.
  static Float scale_by_power(Float x, Float n) { return _mm512_scalef_ps(x, n); }

  static Float load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  // As fp16 of the same digits they are 2^8 times too small, which is exact, subnormals included; NaN is set apart.
  static Float load_e4m3(const uint8_t* p) {
    const __m256i bits = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(bits, _mm256_set1_epi16(0x80)), 8);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7f));
    const __m256i nan =
        _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7c00));
    const __m256i half = _mm256_or_si256(_mm256_or_si256(sign, _mm256_slli_epi16(magnitude, 7)), nan);
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
  }
  static void store_f16(uint16_t* p, Float x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_bf16(uint16_t* p, Float x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
  }

  static void transpose(Float (&v)[16]) {
    Float a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    // b[4 i + j]: columns j, j + 4, j + 8, j + 12 of rows 4 i to 4 i + 3
    for (int i = 0; i < 16; i += 4) {
      b[i] = pair_low(a[i], a[i + 2]);
      b[i + 1] = pair_high(a[i], a[i + 2]);
      b[i + 2] = pair_low(a[i + 1], a[i + 3]);
      b[i + 3] = pair_high(a[i + 1], a[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
      const Float low01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x44),
                  high01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xee);
      const Float low23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x44);
      const Float high23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xee);
      v[j] = _mm512_shuffle_f32x4(low01, low23, 0x88);
      v[j + 4] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
      v[j + 8] = _mm512_shuffle_f32x4(high01, high23, 0x88);
      v[j + 12] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    }
  }

 private:
  static Float pair_low(Float a, Float b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static Float pair_high(Float a, Float b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
};

}  // namespace
}  // namespace apar::cpu
