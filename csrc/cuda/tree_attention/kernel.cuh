// tree_attention for 16-bit numbers: a grid of bins of work items x KV heads (core/work.h).
//
// A block of threads takes the items of a bin and treats all of them as one stream of steps. A
// step brings 64 entries of keys and values to shared memory, some steps before they are used, and folds them into the
// outputs of an item's packed rows (fold.cuh). One warp more decides what the steps are (scheduler.cuh).
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/copies.cuh"
#include "cuda/tree_attention/fold.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/scheduler.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// A position in a ring that is stepped through, without divisions.
struct Ring {
  const int size;
  int index = 0;
  APAR_DEVICE explicit Ring(int size) : size(size) {}
  APAR_DEVICE void next() { index = index + 1 == size ? 0 : index + 1; }
};

template <typename Traits>
class TreeAttention {
 public:
  using Shared = typename Traits::Shared;

  APAR_DEVICE explicit TreeAttention(const TreeAttentionArguments& arguments)
      : params_(arguments.params),
        arguments_(arguments),
        stages_(arguments.shared.stages),
        shared_(shared_memory<Shared>()),
        queries_(shared_address(shared_ + 1) + Traits::totals_bytes(arguments.shared.rows)) {}

  // The last warp: says what the steps are, `stages` steps ahead.
  APAR_DEVICE void schedule() {
    Scheduler<Traits::kMaxRows> scheduler(arguments_);
    Ring ahead(stages_ + 1), now(stages_ + 1);
    int n = 0;
    for (; n < stages_; ++n, ahead.next()) {
      scheduler.prepare(n);
      scheduler.publish(&shared_->blocks[ahead.index]);
    }
    synchronize_step();
    for (;; ++n, ahead.next(), now.next()) {
      synchronize_step();
      if ((load_shared(&shared_->blocks[now.index].flags) & kEndOfWork) != 0) break;
      scheduler.prepare(n);
      scheduler.publish(&shared_->blocks[ahead.index]);
    }
  }

  // All other warps.
  APAR_DEVICE void compute() {
    Ring block_ahead(stages_ + 1), block_now(stages_ + 1), stage_ahead(stages_), stage_now(stages_);
    synchronize_step();
    for (int n = 0; n < stages_ - 1; ++n, block_ahead.next(), stage_ahead.next()) {
      start_copies(&shared_->blocks[block_ahead.index], stage_ahead.index);
    }
    Fold<Traits> fold(arguments_, shared_, reinterpret_cast<unsigned char*>(shared_ + 1));
    for (;; block_ahead.next(), stage_ahead.next(), block_now.next(), stage_now.next()) {
      // This step's copies have landed and everybody is done with the last step: its stage and its block may be reused.
      wait_for_stage();
      synchronize_step();
      start_copies(&shared_->blocks[block_ahead.index], stage_ahead.index);
      if (!fold.take(&shared_->blocks[block_now.index], keys_of(stage_now.index), values_of(stage_now.index))) break;
    }
  }

 private:
  // Warps come to it from two places of the program, so it is not the block's own barrier.
  APAR_DEVICE void synchronize_step(const Location& where = Location::current()) {
    synchronize_threads(kStepBarrier, Traits::kThreads, where);
  }

  // ---- copies

  // One group of copies per step, empty or not, so that waiting can count groups.
  APAR_DEVICE void start_copies(const Block<Traits::kMaxRows>* block, int stage) {
    const int flags = load_shared(&block->flags);
    if ((flags & kFirstOfItem) != 0 && (flags & kEndOfWork) == 0) {
      copy_queries<Traits>(params_, block, queries_, thread_index(), Traits::kComputeThreads);
    }
    if ((flags & kHasEntries) != 0) {
      copy_entries<Traits>(params_, block, keys_of(stage), 0, kTokens, thread_index(), Traits::kComputeThreads);
    }
    commit_copies();
  }

  // The oldest of the stages - 1 groups under way.
  template <int kPending = Traits::kMaxStages - 2>
  APAR_DEVICE void wait_for_stage() {
    if constexpr (kPending > 0) {
      if (stages_ < kPending + 2) return wait_for_stage<kPending - 1>();
    }
    wait_copies<kPending>();
  }

  APAR_DEVICE uint32_t keys_of(int stage) const {
    return queries_ + arguments_.shared.q_rows * Traits::QueryLayout::kStrideBytes + stage * Traits::kStageBytes;
  }
  APAR_DEVICE uint32_t values_of(int stage) const { return keys_of(stage) + Traits::kHalfStageBytes; }

  static constexpr int kStepBarrier = 9;  // fold.cuh has lower ones

  const TreeAttentionParams& params_;
  const TreeAttentionArguments& arguments_;
  const int stages_;
  Shared* const shared_;
  const uint32_t queries_;  // shared address
};

template <typename Traits>
APAR_KERNEL(Traits::kThreads, 1)
tree_attention_kernel(APAR_GRID_CONSTANT TreeAttentionArguments arguments) {
  TreeAttention<Traits> attention(arguments);
  if (warp_index() == kWarps) {
    attention.schedule();
  } else {
    attention.compute();
  }
}

}  // namespace apar::cuda
