// The warp that decides what the steps are and brings what they need.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/hopper/arguments.cuh"
#include "cuda/tree_attention/hopper/traits.h"
#include "cuda/tree_attention/scheduler.cuh"

namespace apar::cuda {

// A stage of the ring and the parity of its barriers' phase in this round.
struct Stage {
  const int size;
  int index = 0, phase = 0;
  APAR_DEVICE explicit Stage(int size) : size(size) {}
  APAR_DEVICE void next() {
    if (++index < size) return;
    index = 0;
    phase ^= 1;
  }
};

template <typename Traits>
class Producer {
 public:
  using T = typename Traits::T;
  using Shared = typename Traits::Shared;

  APAR_DEVICE Producer(const BulkArguments& arguments, Shared* shared)
      : params_(arguments.common.params), arguments_(arguments), shared_(shared), lane_(lane_index()) {}

  APAR_DEVICE void run() {
    if (lane_ == 0) {
      prefetch_map(&arguments_.keys);
      prefetch_map(&arguments_.values);
    }
    Scheduler<Traits::kMaxRows> scheduler(arguments_.common);
    Stage stage(arguments_.common.shared.stages);
    for (int n = 0;; ++n, stage.next()) {
      scheduler.prepare(n);
      wait_arrivals(&shared_->empty[stage.index], stage.phase ^ 1);  // at once in the first round
      Block<Traits::kMaxRows>* block = &shared_->blocks[stage.index];
      scheduler.publish(block);
      synchronize_warp();
      start_copies(block, stage.index);
      if ((load_shared(&block->flags) & kEndOfWork) != 0) break;
    }
  }

 private:
  static constexpr int kParts = Traits::kHeadDim / 8;

  APAR_DEVICE void start_copies(const Block<Traits::kMaxRows>* block, int stage) {
    const int flags = load_shared(&block->flags);
    uint64_t* full = &shared_->full[stage];
    bool by_threads = false;
    if ((flags & kFirstOfItem) != 0 && (flags & kEndOfWork) == 0) {
      copy_queries(block);
      by_threads = true;
    }
    PageKinds kinds{0, 0};
    if ((flags & kHasEntries) != 0) {
      kinds = kinds_of(block);
      const uint32_t mixed = kinds.seen & ~kinds.whole;
      if (mixed != 0) {
        copy_mixed_pages(block, mixed, stage);
        by_threads = true;
      }
    }
    if (by_threads) {
      hold_until_copied(full);
      synchronize_warp();  // before the one arrival that the barrier counts
    }
    if (lane_ != 0) return;
    const int num_boxes = (flags & kHasEntries) != 0 ? count_bits(~(kinds.seen & ~kinds.whole) & all_pages()) : 0;
    arrive_expecting(full, num_boxes * box_rows() * Traits::kHeadDim * 4);
    if (num_boxes > 0) copy_boxes(block, kinds, stage);
  }

  APAR_DEVICE int box_rows() const { return smaller(params_.page_size, kTokens); }
  APAR_DEVICE uint32_t all_pages() const { return (1u << (kTokens / box_rows())) - 1; }

  // Pages of a block, a bit each: seen by anybody, seen as a whole.
  struct PageKinds {
    uint32_t seen, whole;
  };
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
    return {ballot(seen), ballot(whole)};
  }

  // Row of the caches, seen as matrices [num_pages x Hkv x page_size, D], where page i of a block begins.
  APAR_DEVICE int64_t first_row(const Block<Traits::kMaxRows>* block, int i) const {
    const int head = load_shared(&block->unit) % params_.num_kv_heads;
    return (static_cast<int64_t>(load_shared(&block->pages[i])) * params_.num_kv_heads + head) * params_.page_size +
           load_shared(&block->offset);
  }
  APAR_DEVICE uint32_t keys_of(int stage) const {
    return shared_address(shared_ + 1) + Traits::before_stages(arguments_.common.shared) + stage * Traits::kStageBytes;
  }

  APAR_DEVICE uint64_t cache_policy(const Block<Traits::kMaxRows>* block) const {
    const bool read_by_others = (load_shared(&block->flags) & kReadByOthers) != 0;
    return make_cache_policy(read_by_others ? CacheHint::kEvictLast : CacheHint::kEvictFirst);
  }

  // One lane.
  APAR_DEVICE void copy_boxes(const Block<Traits::kMaxRows>* block, const PageKinds& kinds, int stage) {
    const uint64_t policy = cache_policy(block);
    uint64_t* full = &shared_->full[stage];
    fence_async_proxy();  // threads may have copied to this stage before
    const int rows = box_rows();
    uint32_t target = keys_of(stage);
#pragma unroll 1
    for (int i = 0; i * rows < kTokens; ++i, target += rows * kPanelBytes) {
      const bool seen = (kinds.seen >> i & 1) != 0, whole = (kinds.whole >> i & 1) != 0;
      if (seen && !whole) continue;
      const int row = seen ? static_cast<int>(first_row(block, i)) : arguments_.past_the_end;
#pragma unroll
      for (int panel = 0; panel < Traits::kPanels; ++panel) {
        const uint32_t place = target + panel * Traits::kStagePanelBytes;
        copy_box(place, &arguments_.keys, panel * kPanelBytes / 2, row, full, policy);
        copy_box(place + Traits::kHalfStageBytes, &arguments_.values, panel * kPanelBytes / 2, row, full, policy);
      }
    }
  }

  APAR_DEVICE void copy_mixed_pages(const Block<Traits::kMaxRows>* block, uint32_t mixed, int stage) {
    const uint64_t policy = cache_policy(block);
    const uint32_t low = load_shared(&block->visible[0]), high = load_shared(&block->visible[1]);
    const int rows = box_rows();
    const T* keys = static_cast<const T*>(params_.k_cache);
    const T* values = static_cast<const T*>(params_.v_cache);
    for (; mixed != 0; mixed &= mixed - 1) {
      const int page = count_bits((mixed & (~mixed + 1)) - 1);
      const int64_t first = first_row(block, page);
#pragma unroll 1
      for (int i = lane_; i < rows * kParts; i += kWarpSize) {
        const int entry = i / kParts, part = i % kParts, token = page * rows + entry;
        const bool valid = ((token < 32 ? low >> token : high >> (token - 32)) & 1) != 0;
        const int64_t source = valid ? (first + entry) * Traits::kHeadDim + part * 8 : 0;
        const uint32_t target = keys_of(stage) + Traits::entry_offset(token, part);
        copy_async<16>(target, keys + source, valid, policy);
        copy_async<16>(target + Traits::kHalfStageBytes, values + source, valid, policy);
      }
    }
  }

  APAR_DEVICE void copy_queries(const Block<Traits::kMaxRows>* block) {
    const uint64_t policy = make_cache_policy(CacheHint::kNormal);
    const int head = load_shared(&block->unit) % params_.num_kv_heads;
    const int first_packed = load_shared(&block->item.first_packed), num_packed = load_shared(&block->item.num_packed);
    const T* queries = static_cast<const T*>(params_.q);
    const uint32_t target = shared_address(shared_ + 1) + Traits::totals_bytes(arguments_.common.shared.rows) +
                            load_shared(&block->q_row) * Traits::QueryLayout::kStrideBytes;
    const int end = (num_packed + kStripRows - 1) / kStripRows * kStripRows * kParts;
#pragma unroll 1
    for (int i = lane_; i < end; i += kWarpSize) {
      const int packed = i / kParts, part = i % kParts;
      const bool valid = packed < num_packed;
      const int row = (first_packed + packed) / params_.group_size;
      const int query_head = head * params_.group_size + (first_packed + packed) % params_.group_size;
      const int64_t source = row * params_.q_row_stride + query_head * params_.q_head_stride + part * 8;
      copy_async<16>(target + Traits::QueryLayout::offset_of(packed, part), queries + (valid ? source : 0), valid,
                     policy);
    }
  }

  const TreeAttentionParams& params_;
  const BulkArguments& arguments_;
  Shared* const shared_;
  const int lane_;
};

}  // namespace apar::cuda
