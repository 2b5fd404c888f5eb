// Shapes of the kernel and its plan of shared memory.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/work.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kTokens = kBlockEntries;          // of one block of keys and values
constexpr int kMaxPagesPerBlock = kTokens / 8;  // pages have 8 entries or more

enum BlockFlags {
  kFirstOfItem = 1,
  kFirstOfSegment = 2,
  kHasEntries = 4,  // without: nothing to load, nothing to compute
  kEndOfWork = 8,
  kReadByOthers = 16,     // items of other strands read these pages too
  kCopiedByThreads = 32,  // not by the copy engine alone
};

// What is to be done in one step; written by the scheduler, read by all.
template <int kRows>
struct Block {
  int32_t flags;
  int32_t q_row;        // of the queries' place in shared memory, where the item's first lies
  int32_t unit;         // part * Hkv + KV head
  int32_t offset;       // of the first entry in its page
  uint32_t visible[2];  // entries that any row of the item sees, a bit each
  WorkItem item;        // with kFirstOfItem; first_packed and num_packed are the part's
  int32_t pages[kMaxPagesPerBlock];
  int32_t seen[kRows];  // per row of the item: first entry seen | one past the last << 16
};

// Rows of kBytes bytes in shared memory. The eight rows of a matrix load must lie in different banks: where a row is a
// multiple of 128 bytes its 16-byte parts are permuted by the row's number, else it is an odd number of parts long.
template <int kBytes>
struct RowLayout {
  static_assert(kBytes % 16 == 0);
  static constexpr bool kPermuted = kBytes % 128 == 0;
  static constexpr int kStrideBytes = kPermuted || kBytes / 16 % 2 == 1 ? kBytes : kBytes + 16;

  // Byte offset of the 16-byte part `part` of row `row`.
  static APAR_DEVICE uint32_t offset_of(int row, int part) {
    return row * kStrideBytes + (kPermuted ? part ^ (row % 8) : part) * 16;
  }
  // From the address of part `low` of a row to that of part `low + step`: `step` is known to the compiler, and the two
  // have no bit in common.
  static APAR_DEVICE uint32_t step_to(uint32_t address, int step) {
    return kPermuted ? (address ^ (step % 8 * 16)) + step / 8 * 128 : address + step * 16;
  }
};

// How the warps share out the work on an item of at most kStrips strips of 16 packed rows: the warps of a strip share
// out the tokens of a block for the scores, and the output's columns, in units of 16, for the values.
constexpr int kWarps = 8;
template <int kHeadDim, int kStrips_>
struct Team {
  static constexpr int kStrips = kStrips_;
  static constexpr int kWarpsPerStrip = kWarps / kStrips;
  static constexpr int kTokensPerWarp = kTokens / kWarpsPerStrip;
  static constexpr int kPairs = kTokensPerWarp / 16;  // of the matrix instruction's 8 columns
  static constexpr int kColumnUnits = kHeadDim / 16;
  static constexpr int kUnits = (kColumnUnits + kWarpsPerStrip - 1) / kWarpsPerStrip;
  // Teams use shared memory and barriers of their own: warps of two items never meet in one.
  static constexpr int kFirstStrip = kStrips == 2 ? 0 : 2;
  // A warp's outputs of a whole strip fit its registers once, not twice.
  static constexpr bool kTotalIsShared = kStrips == 8;
};
// Teams of eight strips need more shared memory than older cards have, whose program leaves them out.
constexpr int kWideComputeCapability = 90;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasWideTeams = false;
#else
constexpr bool kHasWideTeams = true;
#endif
constexpr int kTeamStrips = 6;  // of teams of 2 and 4 strips; one warp has a strip of 8 for itself

// What a launch gives the kernel of shared memory.
struct SharedPlan {
  int rows = 0;    // packed rows of an item that are done at once
  int q_rows = 0;  // packed rows whose queries fit: items of at most half of it come in turns
  int stages = 0;  // 0: not even the smallest plan fits
};

// T: Half or BFloat16; Kv: T or Float8.
template <typename T_, typename Kv_, int kHeadDim_>
struct TreeAttentionTraits {
  using T = T_;
  using Kv = Kv_;
  static constexpr bool kFloat8 = sizeof(Kv) == 1;
  static constexpr int kHeadDim = kHeadDim_;
  // Beyond, the accumulators leave the registers.
  static constexpr int kMaxStrips = kHeadDim <= 128 ? 8 : 2;
  static constexpr int kMaxRows = kMaxStrips * kStripRows, kRowsAtOnce = kStripRows;
  static constexpr int kComputeThreads = kWarps * kWarpSize;
  static constexpr int kThreads = kComputeThreads + kWarpSize;  // one warp schedules
  static_assert(kHeadDim % 16 == 0);
  static constexpr int kMaxUnits = kMaxStrips == 2                      ? 2 * Team<kHeadDim, 2>::kUnits
                                   : Team<kHeadDim, 4>::kUnits % 2 == 1 ? 2 * Team<kHeadDim, 4>::kUnits
                                                                        : Team<kHeadDim, 8>::kUnits;
  static_assert(kMaxUnits >= 2 * Team<kHeadDim, 2>::kUnits);

  using QueryLayout = RowLayout<kHeadDim* static_cast<int>(sizeof(T))>;
  using EntryLayout = RowLayout<kHeadDim* static_cast<int>(sizeof(Kv))>;
  // Of keys and values in their stage.
  static constexpr int kEntryStrideBytes = EntryLayout::kStrideBytes;
  static APAR_DEVICE uint32_t entry_offset(int entry, int part) { return EntryLayout::offset_of(entry, part); }
  static APAR_DEVICE uint32_t entry_step(uint32_t address, int step) { return EntryLayout::step_to(address, step); }
  static constexpr int kHalfStageBytes = kTokens * kEntryStrideBytes;
  static constexpr int kStageBytes = 2 * kHalfStageBytes;  // keys, then values
  static constexpr int kWantedBytes = 64 * 1024;           // under way while one stage is worked on
  static constexpr int kMaxStages = kWantedBytes / kStageBytes + 2 < 5 ? 5 : kWantedBytes / kStageBytes + 2;
  static constexpr int kWeightStride = kTokens + 8;

  struct alignas(128) Shared {
    T weights[kTeamStrips][kStripRows][kWeightStride];
    float maxima[2][kWarps][kStripRows];
    Block<kMaxRows> blocks[kMaxStages + 1];
    int32_t arrived;
  };
  // Behind it the totals of wide items, the queries, the stages.
  static APAR_HOST_DEVICE constexpr int totals_bytes(int rows) { return rows > 64 ? rows * kHeadDim * 4 : 0; }
  static APAR_HOST_DEVICE constexpr int before_stages(const SharedPlan& plan) {
    return totals_bytes(plan.rows) + plan.q_rows * QueryLayout::kStrideBytes;
  }
  // `fixed_bytes`: of what is shared beside that.
  static constexpr int shared_bytes(const SharedPlan& plan, int fixed_bytes = static_cast<int>(sizeof(Shared))) {
    return fixed_bytes + before_stages(plan) + plan.stages * kStageBytes;
  }

  // The most rows that leave room for enough bytes under way, else the plan with the most bytes under way.
  static constexpr SharedPlan plan_for(int packed_rows, int compute_capability, int shared_bytes_per_block,
                                       int fixed_bytes = static_cast<int>(sizeof(Shared))) {
    const int most_rows = compute_capability < kWideComputeCapability && kMaxRows > 64 ? 64 : kMaxRows;
    SharedPlan best;
    for (int rows = packed_rows < most_rows ? packed_rows : most_rows; rows >= 32; rows /= 2) {
      for (int q_rows = 2 * rows; q_rows >= rows; q_rows /= 2) {
        const int room = shared_bytes_per_block - shared_bytes({rows, q_rows, 0}, fixed_bytes);
        const int fit = room / kStageBytes, stages = fit < 2 ? 0 : fit < kMaxStages ? fit : kMaxStages;
        if (stages > best.stages) best = {rows, q_rows, stages};
        if ((best.stages - 1) * kStageBytes >= kWantedBytes) return best;
      }
    }
    return best;
  }
};

}  // namespace apar::cuda
