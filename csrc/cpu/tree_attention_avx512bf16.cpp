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
  // Sixteen words (a[i], b[i]).
  static __m512 interleave(const uint16_t* a, const uint16_t* b) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
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
