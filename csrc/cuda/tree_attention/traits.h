// Shapes of the kernel and its plan of shared memory.
#pragma once

#include <cstdint>

#include "core/work.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kTokens = kBlockEntries;  // of one block of keys and values
constexpr int kMaxStages = 5;
constexpr int kMaxPagesPerBlock = kTokens / 8;  // pages have 8 entries or more

enum BlockFlags {
  kFirstOfItem = 1,
  kFirstOfSegment = 2,
  kHasEntries = 4,  // without: nothing to load, nothing to compute
  kEndOfWork = 8,
};

// What is to be done in one step; written by the scheduler, read by all.
template <int kRows>
struct Block {
  int32_t flags;
  int32_t q_slot;
  int32_t unit;         // part * Hkv + KV head
  int32_t offset;       // of the first entry in its page
  uint32_t visible[2];  // entries that any row of the item sees, a bit each
  WorkItem item;        // with kFirstOfItem
  int32_t pages[kMaxPagesPerBlock];
  int32_t seen[kRows];  // per row of the item: first entry seen | one past the last << 16
};

// The most packed rows of an item: beyond, the accumulators leave the registers.
constexpr int most_packed_rows(int head_dim) { return head_dim <= 128 ? 64 : 32; }

template <typename T_, int kHeadDim_, int kRows_>
struct TreeAttentionTraits {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = kRows_;        // packed rows of an item
  static constexpr int kStrips = kRows / 16;  // of the matrix instruction's 16 rows
  static constexpr int kWarps = kRows == 16 ? 4 : 8;
  static constexpr int kComputeThreads = kWarps * kWarpSize;
  static constexpr int kThreads = kComputeThreads + kWarpSize;  // one warp schedules
  static constexpr int kBlocksPerMultiprocessor = kRows == 16 && kHeadDim <= 128 ? 2 : 1;
  // Warps of a strip share out the tokens of a block for the scores, and the output's columns for the values.
  static constexpr int kWarpsPerStrip = kWarps / kStrips;
  static constexpr int kTokensPerWarp = kTokens / kWarpsPerStrip;
  static constexpr int kScoreTiles = kTokensPerWarp / 8;
  static constexpr int kColumnUnits = kHeadDim / 16;
  static constexpr int kUnitsPerWarp = (kColumnUnits + kWarpsPerStrip - 1) / kWarpsPerStrip;
  static_assert(kRows <= most_packed_rows(kHeadDim) && kHeadDim % 16 == 0 && kRows % 16 == 0 && kWarps % kStrips == 0 &&
                kScoreTiles % 2 == 0);

  // The eight rows of a matrix load must lie in different banks: where a row is a multiple of 128 bytes its 16-byte
  // parts are permuted by the row's number, else it is 16 bytes longer than its numbers.
  static constexpr bool kPermuted = kHeadDim % 64 == 0;
  static constexpr int kStride = kPermuted ? kHeadDim : kHeadDim + 8;
  static constexpr int kWeightStride = kTokens + 8;
  static_assert(kPermuted || kStride * 2 / 16 % 2 == 1);

  static constexpr int kStrideBytes = kStride * static_cast<int>(sizeof(T));

  // Byte offset of the 16-byte part `part` of row `row`.
  static APAR_DEVICE uint32_t offset_of(int row, int part) {
    return row * kStrideBytes + (kPermuted ? part ^ (row % 8) : part) * 16;
  }
  // From the address of part `low` of a row to that of part `low + step`: `step` is known to the compiler, and the two
  // have no bit in common.
  static APAR_DEVICE uint32_t step_to(uint32_t address, int step) {
    return kPermuted ? (address ^ (step % 8 * 16)) + step / 8 * 128 : address + step * 16;
  }

  // The same for keys and values in their stage.
  static constexpr int kEntryStrideBytes = kStrideBytes;
  static APAR_DEVICE uint32_t entry_offset(int entry, int part) { return offset_of(entry, part); }
  static APAR_DEVICE uint32_t entry_step(uint32_t address, int step) { return step_to(address, step); }

  struct Shared {
    alignas(128) T q[2][kRows * kStride];
    T weights[kStrips][16][kWeightStride];
    float maxima[kStrips][kWarpsPerStrip][16];
    Block<kRows> blocks[kMaxStages + 1];
    int32_t arrived;
  };
  // Behind it the stages: keys, then values.
  static constexpr int kHalfStageBytes = kTokens * kStrideBytes;
  static constexpr int kStageBytes = 2 * kHalfStageBytes;
  static constexpr int shared_bytes(int stages) { return static_cast<int>(sizeof(Shared)) + stages * kStageBytes; }

  static int stages_for(int shared_bytes_per_block) {
    return stages_beside(static_cast<int>(sizeof(Shared)), shared_bytes_per_block);
  }
  // As many stages as leave room for the blocks of threads that a multiprocessor is to hold, each with `fixed` bytes
  // besides; 0: not even two fit.
  static int stages_beside(int fixed, int shared_bytes_per_block) {
    constexpr int kReserved = 1024;  // per block of threads, by the driver
    for (int blocks = kBlocksPerMultiprocessor; blocks > 0; --blocks) {
      const int budget = (shared_bytes_per_block + kReserved) / blocks - kReserved;
      const int stages = (budget - fixed) / kStageBytes;
      if (stages >= 2) return stages < kMaxStages ? stages : kMaxStages;
    }
    return 0;
  }
};

}  // namespace apar::cuda
