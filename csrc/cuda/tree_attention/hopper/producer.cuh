// The warp that decides what the steps are and brings what they need.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/copies.cuh"
#include "cuda/tree_attention/hopper/arguments.cuh"
#include "cuda/tree_attention/hopper/stages.cuh"
#include "cuda/tree_attention/hopper/traits.h"
#include "cuda/tree_attention/scheduler.cuh"

namespace apar::cuda {

template <typename Traits>
class Producer {
 public:
  using Shared = typename Traits::Shared;

  APAR_DEVICE Producer(const BulkArguments& arguments, Shared* shared)
      : params_(arguments.common.params),
        plan_(arguments.common.shared),
        arguments_(arguments),
        shared_(shared),
        lane_(lane_index()) {}

  APAR_DEVICE void run() {
    if (lane_ == 0) {
      prefetch_map(&arguments_.keys);
      prefetch_map(&arguments_.values);
    }
    Scheduler<Traits::kMaxRows> scheduler(arguments_.common);
    Stage stage(plan_.stages);
    for (int n = 0;; ++n, stage.next()) {
      scheduler.prepare(n);
      wait_arrivals(&shared_->empty[stage.index], stage.phase ^ 1);  // at once in the first round
      Block<Traits::kMaxRows>* block = &shared_->blocks[stage.index];
      scheduler.publish(block);
      synchronize_warp();
      const int flags = load_shared(&block->flags);
      start_copies(block, flags, stage.index);
      if ((flags & kEndOfWork) != 0) break;
    }
  }

 private:
  // Pages of a block, a bit each.
  struct PageKinds {
    uint32_t whole, mixed;
  };

  APAR_DEVICE void start_copies(Block<Traits::kMaxRows>* block, int flags, int stage) {
    uint64_t* full = &shared_->full[stage];
    const uint32_t target = stage_address<Traits>(shared_, plan_, stage);
    const bool has_queries = (flags & kFirstOfItem) != 0 && (flags & kEndOfWork) == 0;
    const PageKinds kinds = (flags & kHasEntries) != 0 ? kinds_of(block) : PageKinds{0, 0};
    if (has_queries) {
      copy_queries<Traits>(params_, block, queries_address<Traits>(shared_, plan_), lane_, kWarpSize);
    }
    for (uint32_t mixed = kinds.mixed; mixed != 0; mixed &= mixed - 1) {
      const int first = count_bits((mixed & (~mixed + 1)) - 1) * box_rows();
      copy_entries<Traits>(params_, block, target, first, first + box_rows(), lane_, kWarpSize);
    }
    const bool by_threads = has_queries || kinds.mixed != 0;
    if (by_threads) {
      hold_until_copied(full);
      synchronize_warp();  // before the one arrival that the barrier counts
    }
    if (lane_ != 0) return;
    if (by_threads) store_shared(&block->flags, flags | kCopiedByThreads);
    const int num_boxes = (flags & kHasEntries) != 0 ? kTokens / box_rows() - count_bits(kinds.mixed) : 0;
    arrive_expecting(full, num_boxes * box_rows() * (Traits::kStageBytes / kTokens));
    if (num_boxes > 0) copy_boxes(block, kinds, target, full);
  }

  APAR_DEVICE int box_rows() const { return smaller(params_.page_size, kTokens); }

  APAR_DEVICE PageKinds kinds_of(const Block<Traits::kMaxRows>* block) const {
    const uint32_t low = load_shared(&block->visible[0]), high = load_shared(&block->visible[1]);
    const int rows = box_rows();
    bool seen = false, whole = false;
    if (rows == kTokens) {
      seen = lane_ == 0;
      whole = seen && (low & high) == 0xffffffffu;
    } else if (lane_ * rows < kTokens) {
      const uint32_t page = bits_between(lane_ * rows % 32, lane_ * rows % 32 + rows);
      const uint32_t word = lane_ * rows < 32 ? low : high;
      seen = (word & page) != 0;
      whole = (word & page) == page;
    }
    return {ballot(whole), ballot(seen && !whole)};
  }

  // One lane: the pages that are seen as a whole, and zeros for those that are not seen.
  APAR_DEVICE void copy_boxes(const Block<Traits::kMaxRows>* block, const PageKinds& kinds, uint32_t target,
                              uint64_t* full) {
    const uint64_t policy = cache_policy_of(load_shared(&block->flags));
    fence_async_proxy();  // threads may have copied to this stage before
    const int rows = box_rows();
    const PageRows page_rows(params_, block);
#pragma unroll 1
    for (int i = 0; i * rows < kTokens; ++i, target += rows * kPanelBytes) {
      if ((kinds.mixed >> i & 1) != 0) continue;
      const bool seen = (kinds.whole >> i & 1) != 0;
      const int row = seen ? static_cast<int>(page_rows.first(i)) : arguments_.past_the_end;
#pragma unroll
      for (int panel = 0; panel < Traits::kPanels; ++panel) {
        const uint32_t place = target + panel * Traits::kStagePanelBytes;
        copy_box(place, &arguments_.keys, panel * kPanelBytes / 2, row, full, policy);
        copy_box(place + Traits::kHalfStageBytes, &arguments_.values, panel * kPanelBytes / 2, row, full, policy);
      }
    }
  }

  const TreeAttentionParams& params_;
  const SharedPlan& plan_;
  const BulkArguments& arguments_;
  Shared* const shared_;
  const int lane_;
};

}  // namespace apar::cuda
