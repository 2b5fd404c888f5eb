// Work items of a plan for a machine with many blocks: what one block does for one KV head without asking anybody.
//
// An item is a run of at most `packed_rows` packed rows of one tile (packed row = row * group + query head within its
// group) and a run of *segments* of the tile's walk: a segment is one walk entry cut at fixed places of its stream
// (segment_begin). Rows fold segment after segment in the order of the walk, so cutting an item between two segments
// and folding the parts in the same order changes no bit. Items of long tiles are cut at about equal cost, as far as
// the machine has blocks to spare and `max_partials` allows: the first item of a tile leaves one partial result, the
// others one for each of their segments.
//
// The work list is one int32 buffer, aligned to 16 bytes:
//   header | row_begin [R + 1] | arrivals [max_partials x Hkv x kMaxParts] | items | row_ranges [N]
// Row r's ranges that are not empty, in its own order, are row_ranges[row_begin[r]] to row_ranges[row_begin[r + 1]].
// Arrivals count the items of a merge that are done; they are zero between launches. All sections but the last lie at
// places that are known without the number of ranges. A kernel whose tiles have fewer packed rows than the items treats
// each item as several parts, so the list does not depend on head size and card.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/plan.h"

namespace apar {

constexpr int32_t kBlockEntries = 64;
constexpr int32_t kEndOfWalk = 0x7fffffff;
constexpr int32_t kMaxParts = 4;  // 64 packed rows in tiles of 16
constexpr int32_t kWorkMagic = 0x41505731;

// Segments grow with their place in the stream, so that long streams do not fall into very many.
APAR_HOST_DEVICE inline int32_t segment_entries(int32_t entry) {
  return entry < 8192 ? 256 : entry < 32768 ? 1024 : 4096;
}
// First entry of the segment that holds `entry`.
APAR_HOST_DEVICE inline int32_t segment_begin(int32_t entry) { return entry & ~(segment_entries(entry) - 1); }

struct WorkHeader {
  int32_t magic;
  int32_t num_items;
  int32_t num_merges;  // tiles x row runs whose walk is cut
  int32_t num_partials;
  int32_t packed_rows;
  int32_t max_page;  // of the plan
  int32_t reserved[2];
};

struct alignas(16) RowRange {
  int32_t walk;  // the walk entry
  int32_t stream;
  int32_t begin;
  int32_t end;
};

struct WorkItem {
  int32_t first_packed;  // row * group + query head within the group
  int32_t num_packed;
  int32_t begin_walk;  // the first segment: walk entry, and entry where it begins
  int32_t begin_entry;
  int32_t end_walk;  // the first segment that is not the item's; kEndOfWalk: all the rows read
  int32_t end_entry;
  int32_t merge;        // -1: the item is alone and writes the output
  int32_t merge_begin;  // items to merge
  int32_t merge_end;
  int32_t partial;  // first partial result, if merged
  int32_t index;    // of this item
  int32_t reserved;
};
constexpr int kWorkItemInts = sizeof(WorkItem) / sizeof(int32_t);
static_assert(kWorkItemInts == 12 && sizeof(WorkHeader) % sizeof(RowRange) == 0);

// Packed rows of an item, from what is known without the plan: the fewest that hold all rows at once, up to 64.
inline int32_t packed_rows_of_items(int64_t num_rows, int64_t group_size) {
  const int64_t packed = num_rows * group_size;
  return packed <= 16 ? 16 : packed <= 32 ? 32 : 64;
}

struct WorkInput {
  int32_t packed_rows = 64;
  int32_t target_items = 1;  // blocks that run at once, divided by KV heads
  int32_t max_partials = 0;
};

// What suits a device.
inline WorkInput work_input_for(int64_t num_rows, int64_t num_kv_heads, int64_t group_size, int64_t multiprocessors) {
  WorkInput input;
  input.packed_rows = packed_rows_of_items(num_rows, group_size);
  const int64_t blocks = multiprocessors * (input.packed_rows == 16 ? 2 : 1);
  input.target_items = static_cast<int32_t>(blocks > num_kv_heads ? blocks / num_kv_heads : 1);
  // About 140 MB of partial results at head_dim 128.
  const int64_t room = (1 << 18) / (num_kv_heads * input.packed_rows);
  input.max_partials = static_cast<int32_t>(room < 32 ? 32 : room > 512 ? 512 : room);
  return input;
}

inline int64_t max_work_items(int64_t num_rows, int64_t group_size, const WorkInput& input) {
  return num_rows * ((group_size + input.packed_rows - 1) / input.packed_rows) + input.max_partials;
}

// Offsets of the sections, in int32.
struct WorkLayout {
  int64_t row_begin, arrivals, items, row_ranges;
};
inline WorkLayout work_layout(int64_t num_rows, int64_t num_kv_heads, int64_t group_size, const WorkInput& input) {
  WorkLayout layout{};
  layout.row_begin = sizeof(WorkHeader) / sizeof(int32_t);
  layout.arrivals = layout.row_begin + num_rows + 1;
  layout.items = layout.arrivals + input.max_partials * num_kv_heads * kMaxParts;
  const int64_t end = layout.items + kWorkItemInts * max_work_items(num_rows, group_size, input);
  layout.row_ranges = (end + 3) / 4 * 4;
  return layout;
}
inline int64_t work_size(int64_t num_rows, int64_t num_ranges, int64_t num_kv_heads, int64_t group_size,
                         const WorkInput& input) {
  return work_layout(num_rows, num_kv_heads, group_size, input).row_ranges +
         num_ranges * static_cast<int64_t>(sizeof(RowRange) / sizeof(int32_t));
}

namespace work_detail {

// Entries of a walk entry that any of the tile's rows reads, from the lowest to the highest.
struct Span {
  int32_t low, high;
};

inline Span walk_span(const PlanView& plan, int32_t walk) {
  Span span{kEndOfWalk, 0};
  for (int32_t i = plan.walk_reader[walk]; i < plan.walk_reader[walk + 1]; ++i) {
    if (plan.readers[i].begin < span.low) span.low = plan.readers[i].begin;
    if (plan.readers[i].end > span.high) span.high = plan.readers[i].end;
  }
  return span;
}

// Blocks of kBlockEntries, aligned to the stream's start, that [low, high) touches.
inline int32_t blocks_of(int32_t low, int32_t high) {
  return high <= low ? 0 : (high + kBlockEntries - 1) / kBlockEntries - low / kBlockEntries;
}

// Calls take(walk, begin, blocks) for every segment of a tile, in order.
template <typename Take>
void for_each_segment(const PlanView& plan, int32_t tile, Take&& take) {
  for (int32_t walk = plan.tile_walk[tile]; walk < plan.tile_walk[tile + 1]; ++walk) {
    const Span span = walk_span(plan, walk);
    for (int32_t begin = segment_begin(span.low), end = 0; begin < span.high; begin = end) {
      end = begin + segment_entries(begin);
      take(walk, begin, blocks_of(begin > span.low ? begin : span.low, end < span.high ? end : span.high));
    }
  }
}

// The readers of the walk, in the order of the walk, dealt out to their rows: each row's own order again.
inline void write_row_ranges(const PlanView& plan, RowRange* row_ranges, int32_t* row_begin) {
  const PlanHeader& header = *plan.header;
  for (int32_t row = 0; row <= header.num_rows; ++row) row_begin[row] = 0;
  for (int32_t i = 0; i < header.num_readers; ++i) ++row_begin[plan.readers[i].row];
  int32_t total = 0;
  for (int32_t row = 0; row <= header.num_rows; ++row) {
    total += row_begin[row];
    row_begin[row] = total - row_begin[row];
  }
  // The offsets serve as cursors and are moved back afterwards.
  for (int32_t walk = 0; walk < header.num_walk; ++walk) {
    for (int32_t i = plan.walk_reader[walk]; i < plan.walk_reader[walk + 1]; ++i) {
      const PlanReader& reader = plan.readers[i];
      row_ranges[row_begin[reader.row]++] = {walk, plan.walk_stream[walk], reader.begin, reader.end};
    }
  }
  for (int32_t row = header.num_rows; row > 0; --row) row_begin[row] = row_begin[row - 1];
  row_begin[0] = 0;
}

}  // namespace work_detail

// Writes the work list of a plan. Cost O(rows + ranges + segments).
inline void write_work(const int32_t* schedule, const WorkInput& input, int32_t* work) {
  const PlanView plan(schedule);
  const int32_t group = plan.header->group_size, packed_rows = input.packed_rows;
  const WorkLayout layout = work_layout(plan.header->num_rows, plan.header->num_kv_heads, group, input);
  WorkHeader header{.magic = kWorkMagic,
                    .num_items = 0,
                    .num_merges = 0,
                    .num_partials = 0,
                    .packed_rows = packed_rows,
                    .max_page = plan.header->max_page,
                    .reserved = {}};
  for (int64_t i = layout.arrivals; i < layout.items; ++i) work[i] = 0;
  work_detail::write_row_ranges(plan, reinterpret_cast<RowRange*>(work + layout.row_ranges), work + layout.row_begin);
  WorkItem* items = reinterpret_cast<WorkItem*>(work + layout.items);
  const auto add = [&](WorkItem& item) {
    item.index = header.num_items;
    items[header.num_items++] = item;
  };

  // Rows of an item are whole where a group fits.
  const int32_t run = group <= packed_rows ? packed_rows / group * group : packed_rows;
  const auto runs_of = [&](int32_t tile) {
    const int32_t rows = plan.tile_row[tile + 1] - plan.tile_row[tile];
    return group <= packed_rows ? (rows * group + run - 1) / run : rows * ((group + run - 1) / run);
  };
  int64_t total_blocks = 0;
  for (int32_t tile = 0; tile < plan.header->num_tiles; ++tile) {
    int64_t blocks = 0;
    work_detail::for_each_segment(plan, tile, [&](int32_t, int32_t, int32_t count) { blocks += count; });
    total_blocks += blocks * runs_of(tile);
  }
  const int64_t share = (total_blocks + input.target_items - 1) / (input.target_items > 0 ? input.target_items : 1);
  const int64_t least = segment_entries(0) / kBlockEntries;
  const int64_t budget = share > least ? share : least;

  for (int32_t tile = 0; tile < plan.header->num_tiles; ++tile) {
    // The cuts, counted first: they are only made if their partial results have a place.
    int32_t cuts = 0, partials = 1;
    int64_t blocks = 0;
    work_detail::for_each_segment(plan, tile, [&](int32_t, int32_t, int32_t count) {
      if (blocks > 0 && blocks + count > budget) {
        ++cuts;
        blocks = 0;
      }
      blocks += count;
      partials += cuts > 0 ? 1 : 0;
    });
    const int32_t first_row = plan.tile_row[tile], rows = plan.tile_row[tile + 1] - first_row;
    const int32_t num_runs = runs_of(tile);
    if (header.num_partials + static_cast<int64_t>(partials) * num_runs > input.max_partials) cuts = 0;

    for (int32_t i = 0; i < num_runs; ++i) {
      WorkItem item{};
      if (group <= packed_rows) {
        item.first_packed = first_row * group + i * run;
        const int32_t left = rows * group - i * run;
        item.num_packed = left < run ? left : run;
      } else {
        const int32_t runs_per_row = (group + run - 1) / run;
        const int32_t first = i % runs_per_row * run;
        item.first_packed = (first_row + i / runs_per_row) * group + first;
        item.num_packed = group - first < run ? group - first : run;
      }
      item.begin_walk = plan.tile_walk[tile];
      item.end_walk = kEndOfWalk;
      item.merge = -1;
      if (cuts == 0) {
        add(item);
        continue;
      }
      item.merge = header.num_merges++;
      item.merge_begin = header.num_items;
      item.merge_end = header.num_items + cuts + 1;
      item.partial = header.num_partials;
      int32_t segments = 0;
      blocks = 0;
      work_detail::for_each_segment(plan, tile, [&](int32_t walk, int32_t begin, int32_t count) {
        if (blocks > 0 && blocks + count > budget) {
          const bool first = header.num_items == item.merge_begin;
          item.end_walk = walk;
          item.end_entry = begin;
          add(item);
          item.partial += first ? 1 : segments;
          item.begin_walk = walk;
          item.begin_entry = begin;
          item.end_walk = kEndOfWalk;
          item.end_entry = 0;
          blocks = 0;
          segments = 0;
        }
        blocks += count;
        ++segments;
      });
      add(item);
      header.num_partials += partials;
    }
  }
  std::memcpy(work, &header, sizeof(header));
}

}  // namespace apar
