// Shapes of the kernels for Hopper, whose keys and values the copy engine brings, and their plan of shared memory.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// Head sizes whose rows are whole panels of the copy engine.
constexpr bool has_panels(int head_dim) { return head_dim * 2 % kPanelBytes == 0; }

// A row of keys or values lies in panels of 128 bytes, each panel [kTokens, 128 bytes], as copy_box leaves them.
template <int kHeadDim>
struct PanelLayout {
  static_assert(has_panels(kHeadDim));
  static constexpr int kPanels = kHeadDim * 2 / kPanelBytes;
  static constexpr int kStagePanelBytes = kTokens * kPanelBytes;
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
template <typename T_, int kHeadDim_>
struct BulkTraits : TreeAttentionTraits<T_, T_, kHeadDim_>, PanelLayout<kHeadDim_> {
  using Base = TreeAttentionTraits<T_, T_, kHeadDim_>;
  using Layout = PanelLayout<kHeadDim_>;
  using Base::kMaxStages, Base::kWeightStride;
  using Layout::kEntryStrideBytes, Layout::entry_offset, Layout::entry_step;

  // Behind it whole panels only, so that stages are aligned as the copy engine wants them.
  struct alignas(8 * kPanelBytes) Shared {
    T_ weights[kTeamStrips][kStripRows][kWeightStride];
    float maxima[2][kWarps][kStripRows];
    Block<Base::kMaxRows> blocks[kMaxStages];
    uint64_t full[kMaxStages], empty[kMaxStages];
    int32_t arrived;
  };
  static_assert(32 * Base::QueryLayout::kStrideBytes % (8 * kPanelBytes) == 0);
  static constexpr int shared_bytes(const SharedPlan& plan) {
    return Base::shared_bytes(plan, static_cast<int>(sizeof(Shared)));
  }
  static constexpr SharedPlan plan_for(int packed_rows, int compute_capability, int shared_bytes_per_block) {
    return Base::plan_for(packed_rows, compute_capability, shared_bytes_per_block, static_cast<int>(sizeof(Shared)));
  }
};

}  // namespace apar::cuda
