// The rest of the door to the hardware (device.cuh): what a warpgroup, four warps from a multiple of four on, does
// together on sm_90a.
//
// Products run behind the program's back: they read shared memory and registers, and write accumulators, until they are
// waited for. Of the matrix of 64 rows, warp w of the group has rows 16 w to 16 w + 15, as fragments A and C of
// device.cuh; C is a row of tiles of 8 columns. In shared memory a matrix lies in panels as copy_box leaves them (64
// numbers of a row wide), each at a multiple of 1,024 bytes:
//
//   K-major    a row of the panel holds 16 numbers that are summed over: rows of A, columns of B
//   MN-major   a row of the panel holds numbers of one place of the sum: B as it stands, 16 rows of it
#pragma once

#include <type_traits>

#include "cuda/device.cuh"

#if defined(APAR_EMULATED_DEVICE)

#include "emulated_warpgroup.h"

#else

namespace apar::cuda {

// Tells the hardware of a matrix. K-major: `address` is that of the first of the 16 numbers in the first row, and
// `panel_stride` does not matter. MN-major: that of the first row, with `panel_stride` bytes between panels.
APAR_DEVICE uint64_t describe_panels(uint32_t address, int panel_stride) {
  constexpr uint64_t kEightRows = 8 * kPanelBytes / 16, kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(panel_stride >> 4) << 16 |
         kEightRows << 32 | kSwizzle128 << 62;
}
// The same matrix, some bytes further on; a multiple of 16.
APAR_DEVICE uint64_t advance_panels(uint64_t description, int bytes) { return description + (bytes >> 4); }

// Between what threads did to registers that products use and the products.
APAR_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
APAR_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `pending` of the newest groups are under way.
template <int pending>
APAR_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Accumulators are read and written after this point and before it, not across: the compiler does not know that
// products go on behind its back.
template <int kTiles>
APAR_DEVICE void settle(float (&c)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}

// More or fewer registers for this warpgroup's threads, out of what the block of threads was given.
template <int registers>
APAR_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
APAR_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

#define APAR_QUAD(tile) "+f"(tile[0]), "+f"(tile[1]), "+f"(tile[2]), "+f"(tile[3])
#define APAR_SHARED_PRODUCT(type)                                                                             \
  asm volatile(                                                                                               \
      "{.reg .pred accumulate; setp.ne.b32 accumulate, %34, 0;\n"                                             \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                             \
      "\n"                                                                                                    \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                     \
      "%32, %33, accumulate, 1, 1, 0, 0;}"                                                                    \
      : APAR_QUAD(c[0]), APAR_QUAD(c[1]), APAR_QUAD(c[2]), APAR_QUAD(c[3]), APAR_QUAD(c[4]), APAR_QUAD(c[5]), \
        APAR_QUAD(c[6]), APAR_QUAD(c[7])                                                                      \
      : "l"(a), "l"(b), "n"(kAccumulate ? 1 : 0))
#define APAR_PRODUCT_64(type)                                                                                 \
  asm volatile(                                                                                               \
      "{.reg .pred accumulate; setp.ne.b32 accumulate, %37, 0;\n"                                             \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                             \
      "\n"                                                                                                    \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                               \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                     \
      "{%32, %33, %34, %35}, %36, accumulate, 1, 1, 1;}"                                                      \
      : APAR_QUAD(c[0]), APAR_QUAD(c[1]), APAR_QUAD(c[2]), APAR_QUAD(c[3]), APAR_QUAD(c[4]), APAR_QUAD(c[5]), \
        APAR_QUAD(c[6]), APAR_QUAD(c[7])                                                                      \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1))
#define APAR_PRODUCT_128(type)                                                                                  \
  asm volatile(                                                                                                 \
      "{.reg .pred accumulate; setp.ne.b32 accumulate, %69, 0;\n"                                               \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                              \
      "\n"                                                                                                      \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                       \
      "{%64, %65, %66, %67}, %68, accumulate, 1, 1, 1;}"                                                        \
      : APAR_QUAD(c[0]), APAR_QUAD(c[1]), APAR_QUAD(c[2]), APAR_QUAD(c[3]), APAR_QUAD(c[4]), APAR_QUAD(c[5]),   \
        APAR_QUAD(c[6]), APAR_QUAD(c[7]), APAR_QUAD(c[8]), APAR_QUAD(c[9]), APAR_QUAD(c[10]), APAR_QUAD(c[11]), \
        APAR_QUAD(c[12]), APAR_QUAD(c[13]), APAR_QUAD(c[14]), APAR_QUAD(c[15])                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1))

// c = a b, or c += a b with kAccumulate. a: 64 rows x 16; b: 16 x 64 columns; both in shared memory, K-major.
template <typename T, bool kAccumulate>
APAR_DEVICE void multiply_shared(float (&c)[8][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, Half>) {
    APAR_SHARED_PRODUCT("f16");
  } else {
    APAR_SHARED_PRODUCT("bf16");
  }
}
// c += a b. a: the thread's part of 64 rows x 16; b: 16 x 64 or 128 columns in shared memory, MN-major.
template <typename T>
APAR_DEVICE void multiply_transposed(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, Half>) {
    APAR_PRODUCT_64("f16");
  } else {
    APAR_PRODUCT_64("bf16");
  }
}
template <typename T>
APAR_DEVICE void multiply_transposed(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, Half>) {
    APAR_PRODUCT_128("f16");
  } else {
    APAR_PRODUCT_128("bf16");
  }
}

#undef APAR_QUAD
#undef APAR_SHARED_PRODUCT
#undef APAR_PRODUCT_64
#undef APAR_PRODUCT_128

}  // namespace apar::cuda

#endif
