// The hardware as kernels see it: one thin function per instruction, nothing else. Kernels reach the device through
// this header alone, so that a host emulator can take its place.
#pragma once

#include <cstdint>
#include <cstdio>

namespace apar::cuda::device {

// N bytes that move as one load or store.
template <int N>
struct alignas(N) Bytes {
  static_assert(N == 1 || N == 2 || N == 4 || N == 8 || N == 16);
  char data[N];
};

// Index of this thread among all threads of a one-dimensional grid.
__device__ inline int64_t thread_in_grid() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Number of threads of a one-dimensional grid.
__device__ inline int64_t threads_of_grid() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Loads what is read once and never again.
template <int N>
__device__ inline Bytes<N> load_once(const char* source) {
  if constexpr (N == 16) {
    const int4 value = __ldcs(reinterpret_cast<const int4*>(source));
    return reinterpret_cast<const Bytes<N>&>(value);
  } else {
    return *reinterpret_cast<const Bytes<N>*>(source);
  }
}

template <int N>
__device__ inline void store(char* target, Bytes<N> value) {
  if constexpr (N == 16) {
    *reinterpret_cast<int4*>(target) = reinterpret_cast<const int4&>(value);
  } else {
    *reinterpret_cast<Bytes<N>*>(target) = value;
  }
}

// Stops the kernel: the next synchronisation reports a launch failure. For input that only the device can see.
__device__ inline void trap() { __trap(); }

}  // namespace apar::cuda::device
