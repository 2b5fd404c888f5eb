#if defined(__x86_64__)
#include "cpu/vec_avx512.h"
//
#include "cpu/tree_attention_tile.h"

namespace apar::cpu {
namespace {

// bfloat16 in pairs: vdpbf16ps multiplies two of them per lane and adds in fp32.
struct BFloat16Pairs : BFloat16Element {
  static constexpr bool kPacked = true;

  // Up to 16 words, zeros after the last.
  static __m512 load_words(const float* p, int64_t count) {
    if (count >= 16) return _mm512_loadu_ps(p);
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
  }
  // Words (a[i], b[i]) of 16 * vectors columns.
  static void interleave(float* target, const uint16_t* a, const uint16_t* b, int32_t vectors) {
    alignas(64) static constexpr uint16_t kOrder[64] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                        8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
                                                        16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                        24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    const __m512i low = _mm512_load_si512(kOrder), high = _mm512_load_si512(kOrder + 32);
    for (; vectors >= 2; vectors -= 2, a += 32, b += 32, target += 32) {
      const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
      _mm512_storeu_si512(target, _mm512_permutex2var_epi16(x, low, y));
      _mm512_storeu_si512(target + 16, _mm512_permutex2var_epi16(x, high, y));
    }
    if (vectors > 0) {
      const __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
      const __m512i y = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
      _mm512_storeu_si512(target, _mm512_permutex2var_epi16(x, low, y));
    }
  }
  static void store_pairs(float* p, __m512 low, __m512 high) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  static void mask_words(float* target, const float* source, int64_t count, uint32_t mask) {
    for (int64_t i = 0; i < count; i += 16) {
      _mm512_storeu_si512(target + i,
                          _mm512_and_si512(_mm512_loadu_si512(source + i), _mm512_set1_epi32(static_cast<int>(mask))));
    }
  }
  static __m512 multiply_add(__m512 a, __m512 b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

}  // namespace

TileKernel tile_kernel_avx512bf16(ElementType) { return kTileKernel<BFloat16Pairs>; }

}  // namespace apar::cpu
#endif
