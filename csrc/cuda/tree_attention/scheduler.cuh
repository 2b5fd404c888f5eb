// One warp decides what a block of threads does next: which item, which 64 entries of which stream, which of its rows
// see which of them. Lanes hold the rows, each with the range that it reads now and the one that it reads next, loaded
// ahead.
#pragma once

#include "core/work.h"
#include "cuda/device.cuh"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/pages.cuh"
#include "cuda/tree_attention/params.h"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {

// Bits [first, end) of a word of 32; end <= 32.
APAR_DEVICE uint32_t bits_between(int first, int end) {
  if (end <= first) return 0;
  return (0xffffffffu >> (32 - (end - first))) << first;
}

// kRows: the most packed rows that an item of the kernel has.
template <int kRows>
class Scheduler {
 public:
  APAR_DEVICE explicit Scheduler(const TreeAttentionArguments& arguments)
      : params_(arguments.params),
        stages_(arguments.shared.stages),
        rows_(arguments.shared.rows),
        q_rows_(arguments.shared.q_rows),
        units_(arguments.parts * arguments.params.num_kv_heads),
        unit_(block_index() % units_),
        lane_(lane_index()),
        page_shift_(31 - count_leading_zeros(arguments.params.page_size)) {
    const int bin = block_index() / units_;
    next_item_ = load_constant(params_.bin_begin + bin);
    end_item_ = load_constant(params_.bin_begin + bin + 1);
  }

  // The block with number `n` of this block of threads.
  APAR_DEVICE void prepare(int n) {
    flags_ = 0;
    bool started = false;
    for (;;) {
      if (!in_item_) {
        if (started) return;  // an item without entries: its rows get empty results
        if (!fetched_ && next_item_ >= end_item_) {
          flags_ = kEndOfWork | kFirstOfItem | kFirstOfSegment;
          return;
        }
        // The item whose place the queries take must be done when this block's copies start. Items that leave room for
        // another take turns: then it is the one before the last.
        if (!fetched_ && !fetch_item()) continue;
        const int last_use = takes_all_ || last_takes_all_ ? last_block_ : first_block_ - 1;
        if (num_started_ > 0 && n < last_use + stages_ && (takes_all_ || last_takes_all_ || num_started_ > 1)) return;
        start_item();
        started = true;
        first_block_ = last_block_ = n;
        flags_ = kFirstOfItem | kFirstOfSegment;
      }
      if (find_block()) break;
      in_item_ = false;
    }
    const int segment = segment_begin(position_);
    if (walk_ != last_walk_ || segment != last_segment_) flags_ |= kFirstOfSegment;
    last_walk_ = walk_;
    last_segment_ = segment;
    flags_ |= read_by_others_ ? kHasEntries | kReadByOthers : kHasEntries;
    last_block_ = n;

    uint32_t low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const int first = clamp(begin_[i] - position_, 0, kTokens),
                end = clamp(smaller(end_[i], limit_) - position_, 0, kTokens);
      seen_[i] = end > first ? first | end << 16 : 0;
      low |= bits_between(smaller(first, 32), smaller(end, 32));
      high |= bits_between(larger(first, 32) - 32, larger(end, 32) - 32);
    }
    visible_[0] = reduce_or(low);
    visible_[1] = reduce_or(high);

    page_ = 0;
    const int entries = smaller(params_.page_size, kTokens);
    if (lane_ * entries < kTokens) {
      const int first = lane_ * entries % 32;
      const uint32_t word = lane_ * entries < 32 ? visible_[0] : visible_[1];
      const uint32_t seen =
          entries == kTokens ? visible_[0] | visible_[1] : word & bits_between(first, first + entries);
      if (seen != 0) {
        page_ = known_page(params_, stream_,
                           load_constant(params_.page_table + static_cast<int64_t>(stream_) * params_.max_pages +
                                         (position_ >> page_shift_) + lane_));
      }
    }
    offset_ = position_ & (params_.page_size - 1);
    position_ += kTokens;
  }

  APAR_DEVICE void publish(Block<kRows>* block) const {
    if (lane_ == 0) {
      store_shared(&block->flags, flags_);
      store_shared(&block->q_row, takes_all_ ? 0 : (num_started_ & 1) * (q_rows_ / 2));
      store_shared(&block->unit, unit_);
      store_shared(&block->offset, offset_);
      store_shared(&block->visible[0], visible_[0]);
      store_shared(&block->visible[1], visible_[1]);
    }
    if ((flags_ & kFirstOfItem) != 0 && lane_ < kWorkItemInts) {
      store_shared(reinterpret_cast<int32_t*>(&block->item) + lane_, item_int_);
    }
    if ((flags_ & kHasEntries) != 0) {
      if (lane_ < kMaxPagesPerBlock) store_shared(&block->pages[lane_], page_);
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        const int row = i * kWarpSize + lane_;
        if (row < kRows) store_shared(&block->seen[row], seen_[i]);
      }
    }
  }

 private:
  static constexpr int kRowsPerLane = (kRows + kWarpSize - 1) / kWarpSize;
  static constexpr int kNone = 0x7fffffff;

  // False: the part has no rows.
  APAR_DEVICE bool fetch_item() {
    const int index = next_item_++;
    const int skipped = unit_ / params_.num_kv_heads * rows_;
    item_int_ =
        lane_ < kWorkItemInts ? load_constant(reinterpret_cast<const int32_t*>(params_.items + index) + lane_) : 0;
    const int first_packed = shuffle(item_int_, 0) + skipped;
    const int num_packed = smaller(shuffle(item_int_, 1) - skipped, rows_);
    if (num_packed <= 0) return false;
    if (lane_ == 0) item_int_ = first_packed;
    if (lane_ == 1) item_int_ = num_packed;
    last_takes_all_ = takes_all_;
    takes_all_ = num_packed > q_rows_ / 2;
    fetched_ = true;
    return true;
  }

  APAR_DEVICE void start_item() {
    const int first_packed = shuffle(item_int_, 0), num_packed = shuffle(item_int_, 1);
    ++num_started_;
    fetched_ = false;
    begin_walk_ = shuffle(item_int_, 2);
    begin_entry_ = shuffle(item_int_, 3);
    end_walk_ = shuffle(item_int_, 4);
    end_entry_ = shuffle(item_int_, 5);
    const int first_row = first_packed / params_.group_size;
    const int num_rows = (first_packed + num_packed - 1) / params_.group_size - first_row + 1;
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const int row = i * kWarpSize + lane_;
      range_[i] = row < num_rows ? load_constant(params_.row_begin + first_row + row) : 0;
      range_end_[i] = row < num_rows ? load_constant(params_.row_begin + first_row + row + 1) : 0;
      begin_[i] = end_[i] = 0;
      do {
        fetch_range(i);
      } while (next_[i].walk < begin_walk_);
    }
    walk_ = last_walk_ = -1;
    position_ = 0;
    in_item_ = true;
  }

  // The row's next range.
  APAR_DEVICE void fetch_range(int i) {
    next_[i].walk = kNone;
    if (range_[i] < range_end_[i]) next_[i] = load_constant(params_.row_ranges + range_[i]++);
  }

  // Moves position_ to the next block that any row sees; false: the item is done.
  APAR_DEVICE bool find_block() {
    for (;;) {
      int candidate = kNone;
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        if (smaller(end_[i], limit_) > position_) candidate = smaller(candidate, larger(begin_[i], position_));
      }
      candidate = reduce_min(candidate);
      if (walk_ >= 0 && candidate < limit_) {
        position_ = candidate / kTokens * kTokens;
        return true;
      }
      int walk = kNone;
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) walk = smaller(walk, next_[i].walk);
      walk = reduce_min(walk);
      if (walk == kNone || walk > end_walk_) return false;
      walk_ = walk;
      int stream = -1;
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        begin_[i] = end_[i] = 0;
        if (next_[i].walk == walk) {
          begin_[i] = next_[i].begin;
          end_[i] = next_[i].end;
          stream = next_[i].stream;
          fetch_range(i);
        }
      }
      stream = reduce_max(stream);
      stream_ = stream / 2;
      read_by_others_ = stream % 2 != 0;
      position_ = walk == begin_walk_ ? begin_entry_ : 0;
      limit_ = walk == end_walk_ ? end_entry_ : kNone;
    }
  }

  const TreeAttentionParams& params_;
  const int stages_, rows_, q_rows_;
  const int units_;  // parts x KV heads
  const int unit_;
  const int lane_;
  const int page_shift_;
  int next_item_, end_item_;  // of the bin

  // the item
  bool in_item_ = false, fetched_ = false;
  bool takes_all_ = false, last_takes_all_ = false;  // of the queries' place
  int num_started_ = 0, first_block_ = 0, last_block_ = 0;
  int item_int_ = 0;
  int begin_walk_ = 0, begin_entry_ = 0, end_walk_ = 0, end_entry_ = 0;
  // the walk entry
  int walk_ = -1, stream_ = 0, position_ = 0, limit_ = kNone;
  bool read_by_others_ = false;
  int last_walk_ = -1, last_segment_ = 0;
  // the lane's rows
  int range_[kRowsPerLane], range_end_[kRowsPerLane];
  RowRange next_[kRowsPerLane];
  int begin_[kRowsPerLane], end_[kRowsPerLane];
  // the block
  int flags_ = 0, offset_ = 0, page_ = 0;
  uint32_t visible_[2];
  int seen_[kRowsPerLane];
};

}  // namespace apar::cuda
