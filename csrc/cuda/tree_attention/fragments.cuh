// Keys and values on the right side of the matrix instruction: how a warp takes them from shared memory, for caches of
// 16-bit numbers and of 8-bit ones.
//
// A matrix load brings a lane 32 bits of a row. Of e4m3 that is four columns where the instruction wants two and the
// two eight columns on. Since a product's sum does not care which columns meet, as long as both sides agree, the
// queries of each 16 columns are stored in the order 0 1 4 5 8 9 12 13 | 2 3 6 7 10 11 14 15 (query_piece). Values come
// in pairs of columns, so one tile holds a unit's even columns and the other its odd ones (column_of).
//
// A value that is not finite, and that some row of the strip sees, would reach rows that do not see it as 0 x inf.
// Where rows see different entries such values are taken out of the product and given to the rows that see them.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// What the thread's two rows see of a block.
struct Mask {
  bool masked;  // any row of the strip does not see all of it
  int first[2], end[2];
};

template <typename Traits>
class KeyValueFragments {
 public:
  using T = typename Traits::T;
  static constexpr bool kFloat8 = Traits::kFloat8;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kSixteensPerLoad = kFloat8 ? 2 : 1;  // 16 tokens each, of values

  APAR_DEVICE explicit KeyValueFragments(int lane) : lane_(lane) {}

  // Where 4-byte piece `piece` of a row of queries belongs, of 8-bit keys.
  static APAR_DEVICE int query_piece(int piece) { return piece / 8 * 8 + piece % 8 / 2 + piece % 2 * 4; }

  // scores += queries x keys of 16 kPairs tokens from first_token on. `queries` is the lane's row and part.
  template <int kPairs>
  APAR_DEVICE void multiply_keys(float (&scores)[kPairs][2][4], uint32_t queries, uint32_t keys,
                                 int first_token) const {
    const int token = first_token + lane_ / 16 * 8 + lane_ % 8, part = lane_ / 8 % 2;
    const uint32_t source = keys + Traits::entry_offset(token, part);
    if constexpr (!kFloat8) {
#pragma unroll(kPairs == 4 ? 1 : 2)
      for (int column = 0; column < kHeadDim; column += 16) {
        uint32_t a[4];
        load_matrices_x4(a, Traits::QueryLayout::step_to(queries, column / 8));
        const uint32_t row = Traits::entry_step(source, column / 8);
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          uint32_t b[4];
          load_matrices_x4(b, row + pair * 16 * Traits::kEntryStrideBytes);
          multiply_accumulate<T>(scores[pair][0], a, b[0], b[1]);
          multiply_accumulate<T>(scores[pair][1], a, b[2], b[3]);
        }
      }
    } else if constexpr (kPairs % 2 == 0) {
      // A load brings 32 tokens and 16 columns.
      const uint32_t row = keys + Traits::entry_offset(first_token + lane_, 0);
#pragma unroll 1
      for (int column = 0; column < kHeadDim; column += 16) {
        uint32_t a[4];
        load_matrices_x4(a, Traits::QueryLayout::step_to(queries, column / 8));
#pragma unroll
        for (int pair = 0; pair < kPairs; pair += 2) {
          uint32_t raw[4];
          load_matrices_x4(raw, Traits::entry_step(row, column / 16) + pair * 16 * Traits::kEntryStrideBytes);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            multiply_accumulate<T>(scores[pair + i / 2][i % 2], a, from_e4m3<T>(raw[i]), from_e4m3<T>(raw[i] >> 16));
          }
        }
      }
    } else {
      // Or 16 tokens and 32 columns.
#pragma unroll 1
      for (int column = 0; column + 32 <= kHeadDim; column += 32) {
        multiply_float8_keys<kPairs, 2>(scores, queries, column, Traits::entry_step(source, column / 16));
      }
      // Half a load is left over: both halves bring the same.
      if constexpr (kHeadDim % 32 != 0) {
        constexpr int kLast = kHeadDim - 16;
        multiply_float8_keys<kPairs, 1>(scores, queries, kLast, keys + Traits::entry_offset(token, kLast / 16));
      }
    }
  }

  // The lane's address for the values of the warp's first unit of columns.
  APAR_DEVICE uint32_t value_address(uint32_t values, int warp_in_strip) const {
    return values + (kFloat8 ? Traits::entry_offset(lane_, warp_in_strip)
                             : Traits::entry_offset(lane_ % 16, warp_in_strip * 2 + lane_ / 16));
  }
  template <typename Team>
  APAR_DEVICE void load_values(uint32_t (&raw)[4], uint32_t source, int unit, int sixteen) const {
    const int step = unit * Team::kWarpsPerStrip * (kFloat8 ? 1 : 2);
    load_matrices_x4_transposed(raw, Traits::entry_step(source, step) + sixteen * 16 * Traits::kEntryStrideBytes);
  }
  // Of step 0 or 1 of a load: two registers for each of the unit's two tiles.
  APAR_DEVICE void take_values(uint32_t (&b)[4], const uint32_t (&raw)[4], int step) const {
    if constexpr (kFloat8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t four = step == 0 ? raw[i] : raw[2 + i];
        b[i] = from_e4m3<T>(permute_bytes(four, 0x4420));
        b[2 + i] = from_e4m3<T>(permute_bytes(four, 0x4431));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = raw[i];
    }
  }

  // Of a unit's four numbers in a row of this thread, two neighbours and where they begin.
  static APAR_DEVICE int column_of(int lane, int two) {
    return kFloat8 ? lane % 4 * 4 + two * 2 : two * 8 + lane % 4 * 2;
  }
  static APAR_DEVICE float output_of(const float (&unit)[2][4], int half, int two, int i) {
    return kFloat8 ? unit[i][2 * half + two] : unit[two][2 * half + i];
  }

  // The same in all lanes.
  APAR_DEVICE bool any_not_finite(const uint32_t (&b)[4]) const {
    uint32_t sum = 0;  // 0 x number
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = multiply_add_two<T>(b[i], 0, sum);
    return ballot((sum & 0x7fff7fff) != 0) != 0;
  }

  APAR_DEVICE void clear_not_finite(uint32_t (&b)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((b[i] & 0x7fff) >= kInfinity) b[i] &= 0xffff0000;
      if ((b[i] >> 16 & 0x7fff) >= kInfinity) b[i] &= 0xffff;
    }
  }
  // Gives the numbers of b that are not finite to the rows that see them.
  APAR_DEVICE void add_not_finite(float (&out)[2][4], const uint32_t (&b)[4], const uint32_t (&a)[4], const Mask& mask,
                                  int first_token) const {
    // An infinity with a weight above zero; one with a weight of zero, or NaN, is NaN.
#pragma unroll 1
    for (int kind = 0; kind < 4; ++kind) {
      uint32_t left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i % 2, token = first_token + i / 2 * 8 + lane_ % 4 * 2;
        left[i] = right[i] = 0;
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const bool sees = token + high >= mask.first[half] && token + high < mask.end[half];
          const bool vanishes = (a[i] >> (16 * high) & 0x7fff) == 0;
          if (sees && (kind == 2 || vanishes == (kind == 3))) left[i] |= kOne << (16 * high);
          const uint32_t number = b[i] >> (16 * high) & 0xffff, magnitude = number & 0x7fff;
          const bool matches = kind == 0   ? number == kInfinity
                               : kind == 1 ? number == (kInfinity | 0x8000)
                               : kind == 2 ? magnitude > kInfinity
                                           : magnitude == kInfinity;
          if (matches) right[i] |= kOne << (16 * high);
        }
      }
      const float result = kind == 0   ? -minus_infinity()
                           : kind == 1 ? minus_infinity()
                                       : minus_infinity() - minus_infinity();
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        float count[4] = {};
        multiply_accumulate<T>(count, left, right[2 * tile], right[2 * tile + 1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) out[tile][i] += count[i] > 0.0f ? result : 0.0f;
      }
    }
  }

 private:
  // Bits of 16-bit numbers.
  static constexpr uint32_t kInfinity = T::kInfinity, kOne = T::kOne;

  // kSteps x 16 columns from `column` on.
  template <int kPairs, int kSteps>
  APAR_DEVICE void multiply_float8_keys(float (&scores)[kPairs][2][4], uint32_t queries, int column,
                                        uint32_t source) const {
    uint32_t a[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      load_matrices_x4(a[step], Traits::QueryLayout::step_to(queries, column / 8 + step * 2));
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      uint32_t raw[4];
      load_matrices_x4(raw, source + pair * 16 * Traits::kEntryStrideBytes);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const uint32_t four = raw[tile * 2 + step];
          multiply_accumulate<T>(scores[pair][tile], a[step], from_e4m3<T>(four), from_e4m3<T>(four >> 16));
        }
      }
    }
  }

  const int lane_;
};

}  // namespace apar::cuda
