// Shapes of the kernels for Hopper, whose keys and values the copy engine brings, and their plans of shared memory.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// Whether rows of keys and values are whole panels of the copy engine.
template <typename Kv>
constexpr bool has_panels(int head_dim) {
  return head_dim * static_cast<int>(sizeof(Kv)) % kPanelBytes == 0;
}

// A row of keys or values lies in panels of 128 bytes, each panel [kTokens, 128 bytes], as copy_box leaves them.
template <typename Kv, int kHeadDim>
struct PanelLayout {
  static_assert(has_panels<Kv>(kHeadDim));
  static constexpr int kPanels = kHeadDim * static_cast<int>(sizeof(Kv)) / kPanelBytes;
  static constexpr int kStagePanelBytes = kTokens * kPanelBytes;
  static constexpr int kHalfStageBytes = kPanels * kStagePanelBytes;
  static constexpr int kStageBytes = 2 * kHalfStageBytes;
  // What Fold asks for, see TreeAttentionTraits.
  static constexpr int kEntryStrideBytes = kPanelBytes;
  static APAR_DEVICE uint32_t entry_offset(int entry, int part) {
    return part / 8 * kStagePanelBytes + entry * kPanelBytes + (part ^ entry) % 8 * 16;
  }
  static APAR_DEVICE uint32_t entry_step(uint32_t address, int step) {
    return (address ^ (step % 8 * 16)) + step / 8 * kStagePanelBytes;
  }
};

// The shapes of TreeAttentionTraits; every stage has a barrier for its arrival and one for its release.
template <typename T_, typename Kv_, int kHeadDim_>
struct BulkTraits : TreeAttentionTraits<T_, Kv_, kHeadDim_>, PanelLayout<Kv_, kHeadDim_> {
  using Base = TreeAttentionTraits<T_, Kv_, kHeadDim_>;
  using Layout = PanelLayout<Kv_, kHeadDim_>;
  using Base::kMaxStages;
  using Layout::kEntryStrideBytes, Layout::entry_offset, Layout::entry_step, Layout::kHalfStageBytes,
      Layout::kStageBytes;
  static_assert(Base::kStageBytes == Layout::kStageBytes);

  struct alignas(8 * kPanelBytes) Shared {
    T_ weights[kTeamStrips][kStripRows][Base::kWeightStride];
    float maxima[2][kWarps][kStripRows];
    Block<Base::kMaxRows> blocks[kMaxStages];
    uint64_t full[kMaxStages], empty[kMaxStages];
    int32_t arrived;
  };
  static constexpr int kFixedBytes = static_cast<int>(sizeof(Shared));
  static constexpr int shared_bytes(const SharedPlan& plan) { return Base::shared_bytes(plan, kFixedBytes); }
  static constexpr SharedPlan plan_for(int packed_rows, int shared_bytes_per_block) {
    return Base::plan_for(packed_rows, 90, shared_bytes_per_block, kFixedBytes);
  }
};

// 128 packed rows in two warpgroups, which multiply what lies in shared memory; a third brings it. A warp has a strip
// of 16 rows and all columns.
template <typename T_, int kHeadDim_>
struct WarpgroupTraits : PanelLayout<T_, kHeadDim_> {
  using T = T_;
  using Kv = T_;
  using Layout = PanelLayout<T_, kHeadDim_>;
  using Layout::kStageBytes;
  static constexpr bool kFloat8 = false;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kMaxRows = 128, kRowsAtOnce = 64;
  static constexpr int kComputeThreads = kWarps * kWarpSize;
  static constexpr int kThreads = kComputeThreads + 4 * kWarpSize;
  // Of 64 K, in eights: what a third of the threads gives away, the others take.
  static constexpr int kProducerRegisters = 80, kComputeRegisters = 216;
  static constexpr int kScoreTiles = kTokens / 8, kOutputTiles = kHeadDim / 8;

  // Queries lie in panels too.
  struct QueryLayout {
    static constexpr int kStrideBytes = kPanelBytes, kPanelStrideBytes = kMaxRows * kPanelBytes;
    static APAR_DEVICE uint32_t offset_of(int row, int part) {
      return part / 8 * kPanelStrideBytes + row * kPanelBytes + (part ^ row) % 8 * 16;
    }
  };

  static constexpr int kMaxStages = kHeadDim == 64 ? 6 : 4;
  struct alignas(8 * kPanelBytes) Shared {
    Block<kMaxRows> blocks[kMaxStages];
    uint64_t full[kMaxStages], empty[kMaxStages];
    int32_t arrived;
  };
  // Behind it the totals, the queries, the stages.
  static APAR_HOST_DEVICE constexpr int totals_bytes(int rows) { return rows * kHeadDim * 4; }
  static APAR_HOST_DEVICE constexpr int before_stages(const SharedPlan& plan) {
    return totals_bytes(plan.rows) + kMaxRows * kHeadDim * static_cast<int>(sizeof(T));
  }
  static constexpr int shared_bytes(const SharedPlan& plan) {
    return static_cast<int>(sizeof(Shared)) + before_stages(plan) + plan.stages * kStageBytes;
  }
  static constexpr SharedPlan plan_for(int packed_rows, int shared_bytes_per_block) {
    const SharedPlan none{kMaxRows, kMaxRows, 0};
    const int stages = (shared_bytes_per_block - shared_bytes(none)) / kStageBytes;
    if (packed_rows != kMaxRows || stages < 2) return none;
    return {kMaxRows, kMaxRows, stages < kMaxStages ? stages : kMaxStages};
  }
};
// Where accumulators fit the registers.
template <typename T, typename Kv>
constexpr bool has_warpgroups(int head_dim) {
  return sizeof(Kv) == sizeof(T) && (head_dim == 64 || head_dim == 128);
}

}  // namespace apar::cuda
