// The functions of csrc/cuda/warpgroup.cuh on the emulated machine; included by that header alone.
//
// A product is carried out when it is waited for. Until then its accumulators hold NaN, so a thread that reads them too
// early reads nonsense and one that writes them loses what it wrote. Shared memory is looked at when the product starts
// (who wrote it, and can the asynchronous proxy know?) and again when it is carried out (has it stayed?).
#pragma once

#include <limits>

#include "emulated_device.h"

namespace apar::cuda {

inline uint64_t describe_panels(uint32_t address, int panel_stride) {
  constexpr uint64_t kEightRows = 8 * kPanelBytes / 16, kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel_stride >> 4) << 16 |
         kEightRows << 32 | kSwizzle128 << 62;
}
inline uint64_t advance_panels(uint64_t description, int bytes) { return description + (bytes >> 4); }

inline void fence_products(const Location& where = Location::current()) { machine().fence_products(where); }
inline void commit_products(const Location& where = Location::current()) { machine().commit_products(where); }
template <int pending>
void wait_products(const Location& where = Location::current()) {
  machine().wait_products(pending, where);
}
template <int kTiles>
void settle(float (&)[kTiles][4]) {}
template <int registers>
void take_registers() {}
template <int registers>
void give_registers() {}

// As the PTX manual describes a matrix descriptor with 128-byte swizzle: where number `along` of row `row` lies, for
// K-major row: of the matrix [M or N, K], along: its place in the sum; MN-major: the other way round.
inline uint32_t place_in_panels(uint64_t description, bool mn_major, int row, int along, const Location& where) {
  const uint32_t start = (description & 0x3fff) << 4;
  const uint32_t leading = (description >> 16 & 0x3fff) << 4, stride = (description >> 32 & 0x3fff) << 4;
  if (description >> 62 != 1 || (description >> 49 & 7) != 0) {
    throw emulator::Fault("a matrix descriptor without 128-byte swizzle, or with a base offset", where);
  }
  const uint32_t offset = mn_major ? row / 64 * leading + along / 8 * stride + along % 8 * 128 + row % 64 * 2
                                   : row / 8 * stride + row % 8 * 128 + along * 2;
  const uint32_t address = start + offset;
  return address ^ (address >> 7 & 7) << 4;
}

// All of a matrix of 16 places in the sum, each number once.
template <typename T>
std::vector<float> read_panels(uint64_t description, bool mn_major, int first_row, int rows, bool starts,
                               const Location& where) {
  std::vector<float> values(static_cast<size_t>(rows) * 16);
  for (int row = 0; row < rows; ++row) {
    for (int along = 0; along < 16; ++along) {
      // Eight neighbours share a part of 16 bytes: looked at once.
      const int inner = mn_major ? row : along;
      const uint32_t place = place_in_panels(description, mn_major, first_row + row, along, where);
      uint16_t bits;
      machine().read_for_product(place, &bits, inner % 8 == 0, starts, where);
      values[row * 16 + along] = to_float(T{bits});
    }
  }
  return values;
}

// a: 16 numbers of each of the warp's 16 rows, or null: in shared memory.
template <typename T, int kTiles>
void multiply_warpgroup(float (&c)[kTiles][4], const uint32_t* a, uint64_t a_panels, uint64_t b_panels, bool mn_major,
                        bool accumulate, const Location& where) {
  struct Slot {
    float* c;
    const uint32_t* a;
  } slot{&c[0][0], a};
  machine().gather("product of a warpgroup", &slot, where, [&](void** slots) {
    emulator::Product product;
    product.accumulator_floats = kTiles * 4;
    std::vector<float> rows(16 * 16);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto* mine = static_cast<Slot*>(slots[lane]);
      product.accumulators.push_back(mine->c);
      if (mine->a == nullptr) continue;
      for (int part = 0; part < 4; ++part) {
        for (int i = 0; i < 2; ++i) {
          const uint16_t bits = static_cast<uint16_t>(mine->a[part] >> 16 * i);
          rows[(lane / 4 + part % 2 * 8) * 16 + lane % 4 * 2 + part / 2 * 8 + i] = to_float(T{bits});
        }
      }
    }
    const bool a_shared = a == nullptr;
    const int first_row = warp_index() % 4 * 16;
    if (a_shared) read_panels<T>(a_panels, false, first_row, 16, true, where);
    read_panels<T>(b_panels, mn_major, 0, kTiles * 8, true, where);
    product.run = [=](const std::vector<float*>& accumulators) {
      const auto left = a_shared ? read_panels<T>(a_panels, false, first_row, 16, false, where) : rows;
      const auto right = read_panels<T>(b_panels, mn_major, 0, kTiles * 8, false, where);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        for (int i = 0; i < kTiles * 4; ++i) {
          const int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
          double sum = accumulate ? accumulators[lane][i] : 0.0f;
          for (int k = 0; k < 16; ++k) {
            sum += static_cast<double>(left[row * 16 + k]) * right[column * 16 + k];
          }
          accumulators[lane][i] = static_cast<float>(sum);
        }
      }
    };
    machine().start_product(std::move(product), a_panels, b_panels, where);
  });
}

template <typename T, bool kAccumulate>
void multiply_shared(float (&c)[8][4], uint64_t a, uint64_t b, const Location& where = Location::current()) {
  multiply_warpgroup<T>(c, nullptr, a, b, false, kAccumulate, where);
}
template <typename T, int kTiles>
void multiply_transposed(float (&c)[kTiles][4], const uint32_t (&a)[4], uint64_t b,
                         const Location& where = Location::current()) {
  multiply_warpgroup<T>(c, a, 0, b, true, true, where);
}

}  // namespace apar::cuda
