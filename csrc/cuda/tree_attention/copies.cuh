// Copies by threads, 16 bytes each: queries, and keys and values entry by entry.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tree_attention/fragments.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// Pages read by other items stay in the second-level cache, others leave first.
APAR_DEVICE uint64_t cache_policy_of(int flags) {
  return make_cache_policy((flags & kReadByOthers) != 0 ? CacheHint::kEvictLast : CacheHint::kEvictFirst);
}

// Where a block's pages lie in the caches, seen as matrices [num_pages x Hkv x page_size, D].
class PageRows {
 public:
  template <int kRows>
  APAR_DEVICE PageRows(const TreeAttentionParams& params, const Block<kRows>* block)
      : pages_(block->pages),
        num_kv_heads_(params.num_kv_heads),
        page_size_(params.page_size),
        head_(load_shared(&block->unit) % params.num_kv_heads),
        offset_(load_shared(&block->offset)) {}
  // Of the first entry of the block in its page i.
  APAR_DEVICE int64_t first(int i) const {
    return (static_cast<int64_t>(load_shared(&pages_[i])) * num_kv_heads_ + head_) * page_size_ + offset_;
  }

 private:
  const int32_t* const pages_;
  const int num_kv_heads_, page_size_, head_, offset_;
};

// A block's tokens [first, end), keys and values, to their stage: zeros where nobody sees an entry, which is not read.
template <typename Traits>
APAR_DEVICE void copy_entries(const TreeAttentionParams& params, const Block<Traits::kMaxRows>* block, uint32_t stage,
                              int first, int end, int thread, int threads) {
  using Kv = typename Traits::Kv;
  constexpr int kNumbers = 16 / sizeof(Kv), kParts = Traits::kHeadDim / kNumbers;
  const uint64_t policy = cache_policy_of(load_shared(&block->flags));
  const uint32_t low = load_shared(&block->visible[0]), high = load_shared(&block->visible[1]);
  // A page of 64 entries or more holds the whole block.
  const int shift = 31 - count_leading_zeros(smaller(params.page_size, kTokens));
  const PageRows rows(params, block);
  const Kv* keys = static_cast<const Kv*>(params.k_cache);
  const Kv* values = static_cast<const Kv*>(params.v_cache);
#pragma unroll 1
  for (int i = first * kParts + thread; i < end * kParts; i += threads) {
    const int token = i / kParts, part = i % kParts;
    const bool valid = ((token < 32 ? low >> token : high >> (token - 32)) & 1) != 0;
    const int64_t row = rows.first(token >> shift) + (token & ((1 << shift) - 1));
    const int64_t source = valid ? row * Traits::kHeadDim + part * kNumbers : 0;
    const uint32_t target = stage + Traits::entry_offset(token, part);
    copy_async<16>(target, keys + source, valid, policy);
    copy_async<16>(target + Traits::kHalfStageBytes, values + source, valid, policy);
  }
}

// All rows that are multiplied at once; zeros behind the item's last. For 8-bit keys each 16 columns are put into
// another order (fragments.cuh).
template <typename Traits>
APAR_DEVICE void copy_queries(const TreeAttentionParams& params, const Block<Traits::kMaxRows>* block, uint32_t queries,
                              int thread, int threads) {
  using T = typename Traits::T;
  using Layout = typename Traits::QueryLayout;
  constexpr int kBytes = Traits::kFloat8 ? 4 : 16, kNumbers = kBytes / sizeof(T), kPieces = Traits::kHeadDim / kNumbers;
  const uint64_t policy = make_cache_policy(CacheHint::kNormal);
  const int head = load_shared(&block->unit) % params.num_kv_heads;
  const int first_packed = load_shared(&block->item.first_packed), num_packed = load_shared(&block->item.num_packed);
  const T* source = static_cast<const T*>(params.q);
  const uint32_t target = queries + load_shared(&block->q_row) * Layout::kStrideBytes;
  const int end = (num_packed + Traits::kRowsAtOnce - 1) / Traits::kRowsAtOnce * Traits::kRowsAtOnce * kPieces;
#pragma unroll 1
  for (int i = thread; i < end; i += threads) {
    const int packed = i / kPieces, piece = i % kPieces;
    const bool valid = packed < num_packed;
    const int row = (first_packed + packed) / params.group_size;
    const int query_head = head * params.group_size + (first_packed + packed) % params.group_size;
    const int64_t offset = row * params.q_row_stride + query_head * params.q_head_stride + piece * kNumbers;
    const int place = Traits::kFloat8 ? KeyValueFragments<Traits>::query_piece(piece) : piece;
    copy_async<kBytes>(target + Layout::offset_of(packed, place * kBytes / 16) + place * kBytes % 16,
                       source + (valid ? offset : 0), valid, policy);
  }
}

}  // namespace apar::cuda
