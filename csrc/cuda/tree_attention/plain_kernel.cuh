// tree_attention for float32 queries: no matrix instructions; for comparisons and models in full precision. Grid: bins
// of work items x KV heads, as in kernel.cuh. A block of threads brings 32 entries of keys or values at a time to
// shared memory, where up to 32 packed rows share them. Eight threads have a packed row: each scores every eighth entry
// and adds up every eighth column, over the entries that its row sees, in their order.
#pragma once

#include "core/numbers.h"
#include "core/work.h"
#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/merge.cuh"
#include "cuda/tree_attention/scheduler.cuh"
#include "cuda/tree_attention/softmax.cuh"

namespace apar::cuda {

constexpr int kPlainRows = 32;
constexpr int kPlainEntries = 32;  // in shared memory at a time
constexpr int kPlainThreadsPerRow = 8;
constexpr int kPlainThreads = kPlainRows * kPlainThreadsPerRow;
constexpr int kPlainMaxHeadDim = 256;
constexpr int kPlainColumns = kPlainMaxHeadDim / kPlainThreadsPerRow;
constexpr int kPlainScores = kTokens / kPlainThreadsPerRow;

struct PlainShared {
  Block<kPlainRows> block;
  int32_t arrived;
  float weights[kPlainRows][kTokens + 1];
};
// Behind it queries [kPlainRows], then entries [kPlainEntries], in rows of this length.
APAR_HOST_DEVICE constexpr int plain_stride(int head_dim) { return head_dim + 4; }
constexpr int plain_shared_bytes(int head_dim) {
  return static_cast<int>(sizeof(PlainShared)) +
         (kPlainRows + kPlainEntries) * plain_stride(head_dim) * static_cast<int>(sizeof(float));
}

// Kv: float or Float8.
template <typename Kv>
class PlainAttention {
 public:
  APAR_DEVICE explicit PlainAttention(const TreeAttentionArguments& arguments)
      : arguments_(arguments),
        params_(arguments.params),
        stride_(plain_stride(arguments.params.head_dim)),
        shared_(shared_memory<PlainShared>()),
        queries_(reinterpret_cast<float*>(shared_ + 1)),
        entries_(queries_ + kPlainRows * stride_),
        row_(thread_index() / kPlainThreadsPerRow),
        mine_(thread_index() % kPlainThreadsPerRow) {}

  APAR_DEVICE void run() {
    Scheduler<kPlainRows> scheduler(arguments_);
    for (int n = 0;; ++n) {
      if (warp_index() == 0) {
        scheduler.prepare(n);
        scheduler.publish(&shared_->block);
      }
      synchronize_block();
      const int flags = load_shared(&shared_->block.flags);
      if ((flags & kFirstOfSegment) != 0) finish_segment();
      if ((flags & kFirstOfItem) != 0) {
        finish_item();
        if ((flags & kEndOfWork) != 0) return;
        start_item();
      }
      if ((flags & kHasEntries) != 0) {
        segment_used_ = true;
        add_block();
      }
      synchronize_block();
    }
  }

 private:
  APAR_DEVICE int head() const { return unit_ % params_.num_kv_heads; }
  APAR_DEVICE int skipped() const { return unit_ / params_.num_kv_heads * kPlainRows; }

  // ---- one block of entries

  APAR_DEVICE void add_block() {
    const int seen = item_row_ >= 0 ? load_shared(&shared_->block.seen[item_row_]) : 0;
    const int first = seen & 0xffff, end = seen >> 16;
    float scores[kPlainScores];
#pragma unroll
    for (int i = 0; i < kPlainScores; ++i) scores[i] = minus_infinity();
#pragma unroll 1
    for (int begin = 0; begin < kTokens; begin += kPlainEntries) {
      bring(static_cast<const Kv*>(params_.k_cache), begin);
#pragma unroll
      for (int i = 0; i < kPlainScores; ++i) {
        const int token = i * kPlainThreadsPerRow + mine_;
        if (token / kPlainEntries * kPlainEntries != begin || token < first || token >= end) continue;
        scores[i] = score(product(token - begin), score_scale_);
      }
    }
    float maximum = segment_.maximum;
#pragma unroll
    for (int i = 0; i < kPlainScores; ++i) maximum = max_of(maximum, scores[i]);
#pragma unroll
    for (int distance = 1; distance < kPlainThreadsPerRow; distance *= 2) {
      maximum = max_of(maximum, shuffle_xor(maximum, distance));
    }
    const float base = maximum == minus_infinity() ? 0.0f : maximum;
    const float factor = exp2_fast(segment_.maximum - base);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPlainScores; ++i) {
      const float weight = exp2_fast(scores[i] - base);
      sum += weight;
      store_shared(&shared_->weights[row_][i * kPlainThreadsPerRow + mine_], weight);
    }
#pragma unroll
    for (int distance = 1; distance < kPlainThreadsPerRow; distance *= 2) sum += shuffle_xor(sum, distance);
    segment_ = {maximum, multiply_add(segment_.sum, factor, sum)};
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) segment_output_[c] *= factor;
    synchronize_warp();  // a row's threads stand in one warp
#pragma unroll 1
    for (int begin = 0; begin < kTokens; begin += kPlainEntries) {
      bring(static_cast<const Kv*>(params_.v_cache), begin);
      const int last = smaller(end, begin + kPlainEntries);
      for (int token = larger(first, begin); token < last; ++token) {
        const float weight = load_shared(&shared_->weights[row_][token]);
        const float* value = entries_ + (token - begin) * stride_ + mine_;
#pragma unroll
        for (int c = 0; c < kPlainColumns; ++c) {
          if (c * kPlainThreadsPerRow >= params_.head_dim) break;
          segment_output_[c] = multiply_add(weight, load_shared(value + c * kPlainThreadsPerRow), segment_output_[c]);
        }
      }
    }
  }

  APAR_DEVICE float product(int entry) const {
    const float *query = queries_ + row_ * stride_, *key = entries_ + entry * stride_;
    float sum = 0.0f;
    for (int column = 0; column < params_.head_dim; ++column) {
      sum = multiply_add(load_shared(query + column), load_shared(key + column), sum);
    }
    return sum;
  }

  // Entries [begin, begin + kPlainEntries) of the block; those that nobody sees are neither read nor written.
  APAR_DEVICE void bring(const Kv* cache, int begin) {
    constexpr int kNumbers = 16 / sizeof(Kv);
    const Block<kPlainRows>& block = shared_->block;
    const int parts = params_.head_dim / kNumbers, page_size = params_.page_size;
    const uint32_t visible = load_shared(&block.visible[begin / 32]);
    static_assert(kPlainEntries == 32);
    synchronize_block();  // nobody reads what was there
    for (int i = thread_index(); i < kPlainEntries * parts; i += kPlainThreads) {
      const int token = begin + i / parts, part = i % parts;
      if ((visible >> (token - begin) & 1) == 0) continue;
      const int page = load_shared(&block.pages[page_size < kTokens ? token / page_size : 0]);
      const int entry = page_size < kTokens ? token % page_size : load_shared(&block.offset) + token;
      const Kv* source =
          cache +
          ((static_cast<int64_t>(page) * params_.num_kv_heads + head()) * page_size + entry) * params_.head_dim +
          part * kNumbers;
      const Vector<16> numbers = load_constant(reinterpret_cast<const Vector<16>*>(source));
#pragma unroll
      for (int j = 0; j < kNumbers; ++j) {
        float number;
        if constexpr (kNumbers == 16) {
          number = e4m3_to_float(numbers.data[j]);
        } else {
          std::memcpy(&number, numbers.data + 4 * j, 4);
        }
        store_shared(entries_ + (token - begin) * stride_ + part * kNumbers + j, number);
      }
    }
    synchronize_block();
  }

  // ---- segments and items

  APAR_DEVICE void start_item() {
    const Block<kPlainRows>& block = shared_->block;
    unit_ = load_shared(&block.unit);
    index_ = load_shared(&block.item.index);
    leaves_segments_ = load_shared(&block.item.leaves_segments) != 0;
    const int first_packed = load_shared(&block.item.first_packed);
    const int num_packed = load_shared(&block.item.num_packed);
    place_ = {-1, 0};
    item_row_ = -1;
    if (row_ < num_packed) {
      place_ = output_place(params_, first_packed + row_, head());
      item_row_ = (first_packed + row_) / params_.group_size - first_packed / params_.group_size;
      const float* source = static_cast<const float*>(params_.q) +
                            (first_packed + row_) / params_.group_size * params_.q_row_stride +
                            place_.query_head * params_.q_head_stride;
      for (int column = mine_; column < params_.head_dim; column += kPlainThreadsPerRow) {
        store_shared(queries_ + row_ * stride_ + column, load_constant(source + column));
      }
    }
    score_scale_ = arguments_.score_scale;
    if (params_.k_scale != nullptr) score_scale_.before *= load_constant(params_.k_scale + head());
    partials_written_ = 0;
    total_ = empty_state();
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) total_output_[c] = 0.0f;
    start_segment();
  }

  APAR_DEVICE void start_segment() {
    segment_ = empty_state();
    segment_used_ = false;
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) segment_output_[c] = 0.0f;
  }

  APAR_DEVICE void finish_segment() {
    if (leaves_segments_) {
      if (segment_used_) write_partial(segment_, segment_output_);
    } else if (folds(segment_)) {
      const FoldFactors factors = fold(total_, segment_);
#pragma unroll
      for (int c = 0; c < kPlainColumns; ++c) {
        total_output_[c] = fold_output(total_output_[c], segment_output_[c], factors);
      }
    }
    start_segment();
  }

  APAR_DEVICE void finish_item() {
    if (index_ < 0) return;  // before the first
    const WorkItem* item = params_.items + index_;
    if (load_constant(&item->merge) < 0) {
      if (item_row_ >= 0) write_output();
    } else {
      if (!leaves_segments_) write_partial(total_, total_output_);
      arrive_and_merge<float, kPlainMaxHeadDim>(arguments_, params_.head_dim, index_, unit_, partials_written_,
                                                &shared_->arrived, kPlainThreads);
    }
  }

  APAR_DEVICE void write_output() {
    const float factor = final_factor(params_, total_, place_.query_head, head());
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) {
      const int column = c * kPlainThreadsPerRow + mine_;
      if (column < params_.head_dim) {
        store_global(static_cast<float*>(params_.out) + place_.index * params_.head_dim + column,
                     finished(total_output_[c], factor));
      }
    }
    if (params_.lse != nullptr && mine_ == 0) store_global(params_.lse + place_.index, natural_lse(total_));
  }

  APAR_DEVICE void write_partial(const SoftmaxState& state, const float (&output)[kPlainColumns]) {
    const WorkItem* item = params_.items + index_;
    const int before = partials_written_++ * strips_of(item) + (skipped() + row_) / kStripRows;
    if (item_row_ < 0) return;
    const PartialResult partial(params_, params_.head_dim, load_constant(&item->partial) + before, head());
    const int row = row_ % kStripRows;
    if (folds(state)) {
#pragma unroll
      for (int c = 0; c < kPlainColumns; ++c) {
        const int column = c * kPlainThreadsPerRow + mine_;
        if (column < params_.head_dim) store_global(partial.output(row, column), output[c]);
      }
    }
    if (mine_ == 0) {
      store_global(partial.maximum(row), state.maximum);
      store_global(partial.sum(row), state.sum);
    }
  }

  const TreeAttentionArguments& arguments_;
  const TreeAttentionParams& params_;
  const int stride_;
  PlainShared* const shared_;
  float *const queries_, *const entries_;
  const int row_, mine_;

  // the item
  int index_ = -1, unit_ = 0, partials_written_ = 0;
  int item_row_ = -1;  // the thread's row among the item's; -1: none
  OutputPlace place_{};
  bool leaves_segments_ = false, segment_used_ = false;
  ScoreScale score_scale_{};
  SoftmaxState segment_ = empty_state(), total_ = empty_state();
  float segment_output_[kPlainColumns] = {}, total_output_[kPlainColumns] = {};
};

template <typename Kv>
APAR_KERNEL(kPlainThreads, 1)
plain_attention_kernel(APAR_GRID_CONSTANT TreeAttentionArguments arguments) {
  PlainAttention<Kv>(arguments).run();
}

}  // namespace apar::cuda
