// Prefix combinations over the threads of a block, by shuffles within warps and one barrier.
#pragma once

#include "cuda/device.cuh"

namespace apar::cuda {

// What is combined: structs of 32-bit words whose default is neutral, with combine(left, right), associative.
template <int kCount>
struct Sums {
  int32_t of[kCount] = {};
  static APAR_DEVICE Sums combine(const Sums& left, const Sums& right) {
    Sums both;
#pragma unroll
    for (int i = 0; i < kCount; ++i) both.of[i] = left.of[i] + right.of[i];
    return both;
  }
};

template <int kCount>
struct Maxima {
  int32_t of[kCount];
  APAR_DEVICE Maxima() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of[i] = -1;
  }
  static APAR_DEVICE Maxima combine(const Maxima& left, const Maxima& right) {
    Maxima both;
#pragma unroll
    for (int i = 0; i < kCount; ++i) both.of[i] = left.of[i] > right.of[i] ? left.of[i] : right.of[i];
    return both;
  }
};

template <class T>
struct Scanned {
  T before;  // of all threads before this one, and what was carried in
  T with;    // this one included
  T total;   // of all threads
};

// The words of a value, by copies: its members may be of 64 bits.
template <class T>
struct Words {
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  static constexpr int kCount = sizeof(T) / sizeof(int32_t);
  int32_t of[kCount];

  static APAR_DEVICE Words from(const T& value) {
    Words words;
    __builtin_memcpy(words.of, &value, sizeof(T));
    return words;
  }
  APAR_DEVICE T value() const {
    T result;
    __builtin_memcpy(&result, of, sizeof(T));
    return result;
  }
};

// All threads of the block call together; their number is a multiple of 32.
class BlockScan {
 public:
  static constexpr int kMaxWords = 12;
  static constexpr int kMaxWarps = 32;
  static constexpr int kSharedInts = 2 * kMaxWarps * kMaxWords;

  APAR_DEVICE explicit BlockScan(int32_t* shared) : shared_(shared), warps_(block_size() / kWarpSize) {}

  template <class T>
  APAR_DEVICE Scanned<T> operator()(const T& value, const T& carried, Location where = Location::current()) {
    constexpr int kWords = Words<T>::kCount;
    static_assert(kWords <= kMaxWords);
    const int lane = lane_index(), warp = warp_index();
    // Two buffers take turns: who still reads one has not met the barrier of the next scan.
    int32_t* totals = shared_ + buffer_ * kMaxWarps * kMaxWords;
    buffer_ ^= 1;

    T with = scan_warp(value);
    if (lane == kWarpSize - 1) {
      const Words<T> words = Words<T>::from(with);
#pragma unroll
      for (int i = 0; i < kWords; ++i) store_shared(totals + warp * kWords + i, words.of[i]);
    }
    synchronize_block(where);
    T of_warp;
    if (lane < warps_) {
      Words<T> words;
#pragma unroll
      for (int i = 0; i < kWords; ++i) words.of[i] = load_shared(totals + lane * kWords + i);
      of_warp = words.value();
    }
    of_warp = scan_warp(of_warp);
    const T up_to_warp = shuffle_words(of_warp, warp > 0 ? warp - 1 : 0);
    const T start = warp > 0 ? T::combine(carried, up_to_warp) : carried;
    const T within = shuffle_up_words(with, 1);
    return {.before = lane > 0 ? T::combine(start, within) : start,
            .with = T::combine(start, with),
            .total = T::combine(carried, shuffle_words(of_warp, warps_ - 1))};
  }

 private:
  template <class T>
  static APAR_DEVICE T shuffle_words(const T& value, int lane) {
    Words<T> words = Words<T>::from(value);
#pragma unroll
    for (int i = 0; i < Words<T>::kCount; ++i) words.of[i] = shuffle(words.of[i], lane);
    return words.value();
  }
  template <class T>
  static APAR_DEVICE T shuffle_up_words(const T& value, int distance) {
    Words<T> words = Words<T>::from(value);
#pragma unroll
    for (int i = 0; i < Words<T>::kCount; ++i) words.of[i] = shuffle_up(words.of[i], distance);
    return words.value();
  }
  template <class T>
  static APAR_DEVICE T scan_warp(T value) {
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const T before = shuffle_up_words(value, distance);
      if (lane_index() >= distance) value = T::combine(before, value);
    }
    return value;
  }

  int32_t* shared_;
  int warps_;
  int buffer_ = 0;
};

}  // namespace apar::cuda
