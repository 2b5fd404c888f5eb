// tree_attention for float32: no matrix instructions, no sharing between rows; for comparisons and models in full
// precision. Grid: one warp per row and query head, four to a block of threads. A warp goes through its row's ranges in
// blocks of 64 entries: each lane scores two entries, then each lane adds up every 32nd column.
#pragma once

#include "core/work.h"
#include "cuda/device.cuh"
#include "cuda/tree_attention/pages.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/softmax.cuh"

namespace apar::cuda {

constexpr int kPlainWarps = 4;
constexpr int kPlainMaxHeadDim = 256;
constexpr int kPlainColumns = kPlainMaxHeadDim / kWarpSize;
constexpr int kEntriesPerLane = kBlockEntries / kWarpSize;

struct PlainAttentionArguments {
  TreeAttentionParams params;
  ScoreScale score_scale;
};

class PlainAttention {
 public:
  APAR_DEVICE PlainAttention(const PlainAttentionArguments& arguments, int row, int query_head, float* query)
      : params_(arguments.params),
        score_scale_(arguments.score_scale),
        lane_(lane_index()),
        row_(row),
        query_head_(query_head),
        head_(query_head / arguments.params.group_size),
        query_(query) {}

  APAR_DEVICE void run() {
    const float* source =
        static_cast<const float*>(params_.q) + row_ * params_.q_row_stride + query_head_ * params_.q_head_stride;
    for (int column = lane_; column < params_.head_dim; column += kWarpSize) {
      store_shared(query_ + column, load_constant(source + column));
    }
    synchronize_warp();
    const int end = load_constant(params_.row_begin + row_ + 1);
    for (int i = load_constant(params_.row_begin + row_); i < end; ++i)
      add_range(load_constant(params_.row_ranges + i));
    write_output();
  }

 private:
  APAR_DEVICE void add_range(const RowRange& range) {
    const int begin = range.begin, end = range.end;
    for (int position = begin / kBlockEntries * kBlockEntries; position < end; position += kBlockEntries) {
      if (position == segment_begin(position)) fold_segment();
      add_block(range.stream / 2, position, position > begin ? position : begin,
                position + kBlockEntries < end ? position + kBlockEntries : end);
    }
    fold_segment();
  }

  // Entries [first, end) of the block at `position`.
  APAR_DEVICE void add_block(int stream, int position, int first, int end) {
    const int32_t* pages = params_.page_table + static_cast<int64_t>(stream) * params_.max_pages;
    float scores[kEntriesPerLane];
    int64_t sources[kEntriesPerLane];
    float maximum = segment_.maximum;
#pragma unroll
    for (int i = 0; i < kEntriesPerLane; ++i) {
      const int entry = position + i * kWarpSize + lane_;
      scores[i] = minus_infinity();
      sources[i] = -1;
      if (entry >= first && entry < end) {
        const int64_t page = known_page(params_, stream, load_constant(pages + entry / params_.page_size));
        sources[i] =
            ((page * params_.num_kv_heads + head_) * params_.page_size + entry % params_.page_size) * params_.head_dim;
        const float* key = static_cast<const float*>(params_.k_cache) + sources[i];
        float product = 0.0f;
        for (int column = 0; column < params_.head_dim; ++column) {
          product = multiply_add(load_shared(query_ + column), load_constant(key + column), product);
        }
        scores[i] = score(product, score_scale_);
      }
      maximum = max_of(maximum, scores[i]);
    }
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2)
      maximum = max_of(maximum, shuffle_xor(maximum, distance));
    const float base = maximum == minus_infinity() ? 0.0f : maximum;
    const float factor = exp2_fast(segment_.maximum - base);
    segment_.maximum = maximum;
    segment_.sum *= factor;
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) segment_output_[c] *= factor;
#pragma unroll
    for (int i = 0; i < kEntriesPerLane; ++i) {
      const float weight = sources[i] < 0 ? 0.0f : exp2_fast(scores[i] - base);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const int64_t source = shuffle(sources[i], lane);
        if (source < 0) continue;
        const float entry_weight = shuffle(weight, lane);
        segment_.sum += entry_weight;
        const float* value = static_cast<const float*>(params_.v_cache) + source;
#pragma unroll
        for (int c = 0; c < kPlainColumns; ++c) {
          const int column = c * kWarpSize + lane_;
          if (column < params_.head_dim)
            segment_output_[c] = multiply_add(entry_weight, load_constant(value + column), segment_output_[c]);
        }
      }
    }
  }

  APAR_DEVICE void fold_segment() {
    if (folds(segment_)) {
      const FoldFactors factors = fold(total_, segment_);
#pragma unroll
      for (int c = 0; c < kPlainColumns; ++c)
        total_output_[c] = fold_output(total_output_[c], segment_output_[c], factors);
    }
    segment_ = empty_state();
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) segment_output_[c] = 0.0f;
  }

  APAR_DEVICE void write_output() {
    const float before =
        params_.sinks != nullptr ? fold_sink(total_, load_constant(params_.sinks + query_head_)) : 1.0f;
    const float factor = before * output_factor(total_);
    const int64_t index = static_cast<int64_t>(row_) * params_.num_kv_heads * params_.group_size + query_head_;
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) {
      const int column = c * kWarpSize + lane_;
      if (column < params_.head_dim) {
        store_global(static_cast<float*>(params_.out) + index * params_.head_dim + column,
                     total_output_[c] * factor + 0.0f);
      }
    }
    if (params_.lse != nullptr && lane_ == 0) store_global(params_.lse + index, natural_lse(total_));
  }

  const TreeAttentionParams& params_;
  const ScoreScale score_scale_;
  const int lane_, row_, query_head_, head_;
  float* const query_;  // in shared memory
  SoftmaxState segment_ = empty_state(), total_ = empty_state();
  float segment_output_[kPlainColumns] = {}, total_output_[kPlainColumns] = {};
};

// A template only so that several files may include it.
template <typename Arguments>
APAR_KERNEL(kPlainWarps* kWarpSize, 4)
plain_attention_kernel(APAR_GRID_CONSTANT Arguments arguments) {
  const TreeAttentionParams& params = arguments.params;
  const int query_heads = params.num_kv_heads * params.group_size;
  const int64_t index = static_cast<int64_t>(block_index()) * kPlainWarps + warp_index();
  if (index >= static_cast<int64_t>(params.num_rows) * query_heads) return;
  float* query = shared_memory<float>() + warp_index() * params.head_dim;
  PlainAttention(arguments, static_cast<int>(index / query_heads), static_cast<int>(index % query_heads), query).run();
}

}  // namespace apar::cuda
