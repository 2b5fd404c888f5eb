// The one door to the hardware: every kernel reaches indices, barriers, shuffles, matrix instructions, asynchronous
// copies and atomics through the functions below, and touches global or shared memory only through load_* / store_* /
// copy_*.
//
// tests/emulator builds the same kernel files for the host: there APAR_EMULATED_DEVICE is defined and this header hands
// over to an implementation of the same functions in which every thread is a fiber (docs/cuda.md).
//
// Fragments of the 16-bit matrix instruction m16n8k16, with group = lane / 4 and pair = lane % 4. A register holds two
// neighbouring 16-bit numbers, the lower column (or, for B, the lower row) in its lower half:
//
//   A (16 rows x 16 columns)   a[0]: row group,     columns 2 pair, +1        a[1]: row group + 8, same columns
//                              a[2]: row group,     columns 2 pair + 8, +9    a[3]: row group + 8, same columns
//   B (16 rows x 8 columns)    b[0]: rows 2 pair, +1, column group            b[1]: rows 2 pair + 8, +9, column group
//   C (16 rows x 8 columns)    c[0], c[1]: row group, columns 2 pair, +1      c[2], c[3]: row group + 8, same columns
//
// load_matrices_x4 (ldmatrix) reads four 8 x 8 matrices of 16-bit numbers; lane i brings the shared_address of row i %
// 8 of matrix i / 8 (16 bytes, aligned). Register m of a lane then holds row lane / 4, columns 2 (lane % 4), +1 of
// matrix m; transposed: rows 2 (lane % 4), +1 of column lane / 4.
#pragma once

#include <cstdint>

#include "core/device_report.h"
#include "core/numbers.h"

namespace apar::cuda {

// 16-bit numbers by their bits, so that no CUDA header is needed where there is no CUDA.
struct Half {
  static constexpr uint32_t kInfinity = 0x7c00, kOne = 0x3c00;
  uint16_t bits;
};
struct BFloat16 {
  static constexpr uint32_t kInfinity = 0x7f80, kOne = 0x3f80;
  uint16_t bits;
};
struct Float8 {  // e4m3
  uint8_t bits;
};

// Bytes that move in one access.
template <int bytes>
struct alignas(bytes) Vector {
  static_assert(bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16);
  unsigned char data[bytes];
};

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// How long the second-level cache should hold what a copy brings: pages that one tile reads leave first, pages with
// many readers stay.
enum class CacheHint { kNormal, kEvictFirst, kEvictLast };

// A matrix in global memory [rows, columns], its rows one behind the other, as the copy engine sees it (launch.h makes
// it): it is copied in boxes of a number of rows x kPanelBytes of columns. In shared memory a box is [rows,
// kPanelBytes], with the 16-byte parts of row i permuted: part p lies in place p ^ (i % 8). Rows past the end of the
// matrix arrive as zeros.
constexpr int kPanelBytes = 128;
struct alignas(128) TensorMap {
  unsigned char bytes[128];
};

}  // namespace apar::cuda

#if defined(APAR_EMULATED_DEVICE)

#include "emulated_device.h"

#else

#include <cuda_runtime.h>

#define APAR_KERNEL(threads, blocks_per_multiprocessor) \
  __global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
#define APAR_DEVICE __device__ __forceinline__
#define APAR_GRID_CONSTANT const __grid_constant__

namespace apar::cuda {

// ---- where am I

APAR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
APAR_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
// The same number in every lane, and the compiler knows it.
APAR_DEVICE int warp_index() { return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarpSize, 0); }
APAR_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
APAR_DEVICE int block_size() { return static_cast<int>(blockDim.x); }
APAR_DEVICE int grid_size() { return static_cast<int>(gridDim.x); }

// For input that only the device can see: tells the host (core/device_report.h). Of several reports one is kept.
APAR_DEVICE void report(DeviceReport* target, DeviceFault fault, int index, int value, int largest) {
  __stcs(reinterpret_cast<int4*>(target), make_int4(static_cast<int>(fault), index, value, largest));
}

// ---- barriers and warp collectives

// Where in the program a call stands: the emulator names it in its messages. Nothing on a device. Functions that wrap a
// barrier take it as their last argument, so that each use is a place of its own.
struct Location {
  static APAR_DEVICE Location current() { return {}; }
};

APAR_DEVICE void synchronize_block(Location = Location::current()) { __syncthreads(); }
// Whether the predicate holds for any thread of the block; a barrier too.
APAR_DEVICE bool any_in_block(bool predicate) { return __syncthreads_or(predicate) != 0; }
APAR_DEVICE void synchronize_warp(Location = Location::current()) { __syncwarp(); }
// A barrier of `threads` threads (a multiple of 32); id 0 is the block's own.
APAR_DEVICE void synchronize_threads(int id, int threads, Location = Location::current()) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <typename T>
APAR_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <typename T>
APAR_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
// The value of the lane `distance` below; lanes under `distance` keep their own.
template <typename T>
APAR_DEVICE T shuffle_up(T value, int distance) {
  return __shfl_up_sync(kAllLanes, value, distance);
}
APAR_DEVICE unsigned ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }
APAR_DEVICE int reduce_min(int value) { return __reduce_min_sync(kAllLanes, value); }
APAR_DEVICE int reduce_max(int value) { return __reduce_max_sync(kAllLanes, value); }
APAR_DEVICE uint32_t reduce_or(uint32_t value) { return __reduce_or_sync(kAllLanes, value); }

// ---- memory. T: 1, 2, 4, 8 or 16 bytes, aligned to its size.

template <typename T = unsigned char>
APAR_DEVICE T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char apar_shared_memory[];
  return reinterpret_cast<T*>(apar_shared_memory);
}

// The 32 bits by which matrix loads and asynchronous copies know a place in shared memory.
APAR_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <typename T>
APAR_DEVICE T load_shared(const T* pointer) {
  return *pointer;
}
template <typename T>
APAR_DEVICE void store_shared(T* pointer, T value) {
  *pointer = value;
}
template <typename T>
APAR_DEVICE T load_global(const T* pointer) {
  return *pointer;
}
// For memory that no thread of the launch writes.
template <typename T>
APAR_DEVICE T load_constant(const T* pointer) {
  if constexpr (sizeof(T) == 16) {
    const int4 value = __ldg(reinterpret_cast<const int4*>(pointer));
    return reinterpret_cast<const T&>(value);
  } else {
    return __ldg(pointer);
  }
}
// Constant, and read once: does not stay in the caches.
template <int bytes>
APAR_DEVICE Vector<bytes> load_once(const Vector<bytes>* pointer) {
  if constexpr (bytes == 16) {
    const int4 value = __ldcs(reinterpret_cast<const int4*>(pointer));
    return reinterpret_cast<const Vector<bytes>&>(value);
  } else {
    return *pointer;
  }
}
template <typename T>
APAR_DEVICE void store_global(T* pointer, T value) {
  if constexpr (sizeof(T) == 16) {
    *reinterpret_cast<int4*>(pointer) = reinterpret_cast<const int4&>(value);
  } else if constexpr (sizeof(T) == 8) {
    *reinterpret_cast<int2*>(pointer) = reinterpret_cast<const int2&>(value);
  } else {
    *pointer = value;
  }
}
// What another block wrote in this launch: past the first-level cache.
template <typename T>
APAR_DEVICE T load_from_other_block(const T* pointer) {
  return __ldcg(pointer);
}

// ---- atomics and fences

// Returns the old value; relaxed, whole device.
APAR_DEVICE int atomic_add(int* pointer, int value) { return atomicAdd(pointer, value); }
APAR_DEVICE int atomic_max(int* pointer, int value) { return atomicMax(pointer, value); }
// What this thread has written is visible to a thread that sees a later write of this thread.
APAR_DEVICE void fence_device() { __threadfence(); }

// ---- asynchronous copies (sm_80). Groups complete in the order in which they were committed.

// A descriptor for copy_async.
APAR_DEVICE uint64_t make_cache_policy(CacheHint hint) {
  uint64_t policy = 0;
  if (hint == CacheHint::kEvictFirst) {
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  } else if (hint == CacheHint::kEvictLast) {
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  } else {
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  }
  return policy;
}
// Zeros are written, and nothing is read, where `valid` is false.
template <int bytes>
APAR_DEVICE void copy_async(uint32_t shared, const void* global, bool valid, uint64_t policy) {
  static_assert(bytes == 4 || bytes == 16);
  const int source_bytes = valid ? bytes : 0;
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global),
                 "r"(source_bytes), "l"(policy)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 4, %2, %3;" ::"r"(shared), "l"(global),
                 "r"(source_bytes), "l"(policy)
                 : "memory");
  }
}
// The barrier's phase does not complete before this thread's copies so far have landed. Comes before the arrivals that
// the barrier counts.
APAR_DEVICE void hold_until_copied(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
APAR_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's newest groups are under way.
template <int pending>
APAR_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- bulk copies and their barriers (sm_90). A barrier's phase completes when all arrivals have come and all
// announced bytes have landed; wait_arrivals(barrier, phase) returns when the phase of that parity is complete.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define APAR_HAS_BULK_COPIES 1

APAR_DEVICE void initialize_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After the barriers were initialized, before anybody uses them.
APAR_DEVICE void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
APAR_DEVICE void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
APAR_DEVICE void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
APAR_DEVICE void wait_arrivals(uint64_t* barrier, int phase) {
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@!complete bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}
// bytes: a multiple of 16; both addresses aligned to 16.
APAR_DEVICE void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
// One box, at a row and a column of the matrix; shared: aligned to 8 x kPanelBytes.
APAR_DEVICE void copy_box(uint32_t shared, const TensorMap* map, int column, int row, uint64_t* barrier,
                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
// The map, a parameter of the kernel, will be needed soon.
APAR_DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// Between ordinary or cp.async writes to shared memory and a bulk copy over them, or a matrix instruction that reads
// them there.
APAR_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

// ---- matrix instructions

APAR_DEVICE void load_matrices_x4(uint32_t (&registers)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}
APAR_DEVICE void load_matrices_x4_transposed(uint32_t (&registers)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

// c += a b, fp32 accumulators.
template <typename T>
APAR_DEVICE void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
APAR_DEVICE void multiply_accumulate<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
APAR_DEVICE void multiply_accumulate<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- numbers

APAR_DEVICE float to_float(float value) { return value; }
APAR_DEVICE float to_float(BFloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
APAR_DEVICE float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
template <typename T>
APAR_DEVICE T from_float(float value);
template <>
APAR_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
APAR_DEVICE BFloat16 from_float<BFloat16>(float value) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
template <>
APAR_DEVICE Half from_float<Half>(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
// Two numbers in one register, `low` in the lower half.
template <typename T>
APAR_DEVICE uint32_t pack(float low, float high);
template <>
APAR_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
template <>
APAR_DEVICE uint32_t pack<Half>(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// The bits of the nearest e4m3, as float_to_e4m3 has them.
APAR_DEVICE uint8_t to_e4m3(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
  return static_cast<uint8_t>(pair);
#else
  return float_to_e4m3(value);
#endif
}
// Rounded to the nearest, whatever the compiler's options.
APAR_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }

// a b + c of two numbers each, rounded once.
template <typename T>
APAR_DEVICE uint32_t multiply_add_two(uint32_t a, uint32_t b, uint32_t c);
template <>
APAR_DEVICE uint32_t multiply_add_two<BFloat16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
template <>
APAR_DEVICE uint32_t multiply_add_two<Half>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
// Bytes of the word, or zero for 4, by the selector's four digits, the lowest byte's last.
APAR_DEVICE uint32_t permute_bytes(uint32_t word, uint32_t selector) { return __byte_perm(word, 0, selector); }

// 2^value; 2^-inf is 0.
APAR_DEVICE float exp2_fast(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
APAR_DEVICE float tanh_exact(float value) { return tanhf(value); }
APAR_DEVICE float log_exact(float value) { return logf(value); }
APAR_DEVICE int count_leading_zeros(int value) { return __clz(value); }
APAR_DEVICE int count_bits(uint32_t value) { return __popc(value); }
// The other number where one is NaN.
APAR_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
// a * b + c, rounded once.
APAR_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

}  // namespace apar::cuda

#endif

namespace apar::cuda {

APAR_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
APAR_DEVICE int larger(int a, int b) { return a > b ? a : b; }
APAR_DEVICE int clamp(int value, int low, int high) { return smaller(larger(value, low), high); }

// The two e4m3 in the lower half of `two` as 16-bit numbers, exactly. In a wider format with the exponent's lowest bits
// in the same place a number is smaller by a power of two; a multiplication takes that back, also for numbers below the
// smallest normal one.
template <typename T>
APAR_DEVICE uint32_t from_e4m3_by_bits(uint32_t two) {
  constexpr bool kHalf = T::kInfinity == Half::kInfinity;
  const uint32_t tops = permute_bytes(two, 0x1404);  // each in the upper byte of a half
  const uint32_t magnitudes = tops & 0x7f007f00, signs = tops & 0x80008000;
  const uint32_t small = signs | magnitudes >> (kHalf ? 1 : 4);
  constexpr uint32_t kFactor = kHalf ? 0x5c005c00 : 0x7b807b80;  // 2^8, 2^120
  const uint32_t nan = (magnitudes + 0x01000100) >> 15 & 0x00010001;
  return multiply_add_two<T>(small, kFactor, 0x80008000) | nan * 0x7fff;
}

template <typename T>
APAR_DEVICE uint32_t from_e4m3(uint32_t two) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(two)));
  if constexpr (T::kInfinity == Half::kInfinity) {
    return halves;
  } else {
    return pack<T>(to_float(Half{static_cast<uint16_t>(halves)}), to_float(Half{static_cast<uint16_t>(halves >> 16)}));
  }
#else
  return from_e4m3_by_bits<T>(two);
#endif
}

}  // namespace apar::cuda
