// Work items of a plan for a machine with many blocks of threads: what one of them does for one KV head without asking
// anybody.
//
//   tile     of the plan: rows that read the same streams, at most 128 packed rows (row * group + query head of a
//            group)
//   strand   a run of whole rows of a tile, of at most 32, 64 or 128 packed rows: what is cheapest for the tile and
//            reads little more than the widest (class_of_tile). A wide strand reads what its rows share once, a narrow
//            one has more warps for what a single row reads. (A row with more than 128 query heads per KV head falls
//            into strands of 128 packed rows.)
//   segment  one walk entry of the tile, cut at fixed places of its stream (segment_begin). A row folds segment after
//            segment in the order of the walk; cutting between two segments and folding the parts in the same order
//            changes no bit.
//   item     a strand and a run of its segments: all of them, or a part of about the same cost as others
//   bin      a run of items that one block of threads does per KV head
//
// The strands lie end to end on a line of cost, which is cut into `num_bins` equal bins. A strand that is short beside
// a bin goes to the bin of its middle; a longer one is cut where a segment's middle lies in another bin than the one
// before, as long as there is room for its partial results: the first item of a cut strand leaves its total, the others
// one result for each of their segments (or, without `batch_invariant`, their total as well). Partial results are
// counted in strips of 16 packed rows.
//
// Everything above is a function of sums over walk entries and of prefix sums over strands and segments, so a device
// can write the list with a few parallel scans: (1) a tile's cost per class, thread by walk entry; (2) strands and
// their costs, one scan; (3) pieces and partial results per strand, one scan; (4) items. It may leave `arrivals` alone
// if they are zero already: every launch leaves them at zero.
//
// The work list is one int32 buffer, aligned to 16 bytes:
//   header | bin_begin [target_items + 1] | row_begin [R + 1] | arrivals [target_items x Hkv x kMaxParts] | items |
//   row_ranges [N]
// The items of bin b are bin_begin[b] to bin_begin[b + 1]; entries behind num_bins hold num_items.
// Row r's ranges that are not empty, in its own order, are row_ranges[row_begin[r]] to row_ranges[row_begin[r + 1]].
// All sections but the last lie at places that are known without the number of ranges, and no size depends on the
// plan. A kernel that holds fewer packed rows than an item has treats the item as several parts, so the list does not
// depend on head size and kind of card.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"
#include "core/plan.h"

namespace apar {

constexpr int32_t kBlockEntries = 64;
constexpr int32_t kStripRows = 16;
constexpr int32_t kStrandClasses = 3;
constexpr int32_t kEndOfWalk = 0x7fffffff;
constexpr int32_t kMaxParts = 4;  // 128 packed rows in tiles of 32
constexpr int32_t kWorkMagic = 0x41505732;

APAR_HOST_DEVICE inline int32_t class_rows(int32_t strand_class) { return 32 << strand_class; }

// Segments grow with their place in the stream, so that long streams do not fall into very many.
APAR_HOST_DEVICE inline int32_t segment_entries(int32_t entry) {
  return entry < 8192 ? 256 : entry < 32768 ? 1024 : 4096;
}
// First entry of the segment that holds `entry`.
APAR_HOST_DEVICE inline int32_t segment_begin(int32_t entry) { return entry & ~(segment_entries(entry) - 1); }

struct WorkHeader {
  int32_t magic;
  int32_t num_items;
  int32_t num_merges;    // strands that are cut
  int32_t num_partials;  // strips of 16 packed rows
  int32_t packed_rows;   // the most that an item has
  int32_t max_page;      // of the plan
  int32_t num_bins;
  int32_t reserved;
};

struct alignas(16) RowRange {
  int32_t walk;    // the walk entry
  int32_t stream;  // times two, and one more if other strands read the stream too
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
  int32_t partial;          // first partial result, in strips, if merged
  int32_t index;            // of this item
  int32_t leaves_segments;  // each segment's result to the merge, not the item's total
};
constexpr int kWorkItemInts = sizeof(WorkItem) / sizeof(int32_t);
static_assert(kWorkItemInts == 12 && sizeof(WorkHeader) % sizeof(RowRange) == 0);

struct WorkInput {
  int32_t packed_rows = 128;    // the most that an item may have: 32, 64 or 128
  int32_t target_items = 1;     // bins: blocks of threads that run at once, divided by KV heads
  int32_t max_partials = 0;     // strips of 16 packed rows
  int32_t batch_invariant = 1;  // 0: items of a cut strand leave one result, so a row's bits depend on the cut
};

// The most packed rows of an item, from what is known without the plan: the smallest class that holds all rows.
inline int32_t packed_rows_of_items(int64_t num_rows, int64_t group_size) {
  const int64_t packed = num_rows * group_size;
  return packed <= 32 ? 32 : packed <= 64 ? 64 : 128;
}

// What suits a device.
inline WorkInput work_input_for(int64_t num_rows, int64_t num_kv_heads, int64_t group_size, int64_t multiprocessors,
                                bool batch_invariant = true) {
  WorkInput input;
  input.packed_rows = packed_rows_of_items(num_rows, group_size);
  input.target_items = static_cast<int32_t>(multiprocessors > num_kv_heads ? multiprocessors / num_kv_heads : 1);
  // At most 136 MB of partial results at head_dim 128.
  const int64_t room = (1 << 14) / num_kv_heads;
  input.max_partials = static_cast<int32_t>(room < 64 ? 64 : room > 4096 ? 4096 : room);
  input.batch_invariant = batch_invariant ? 1 : 0;
  return input;
}

// Every row may be a strand of its own, and every boundary between bins may cut one.
APAR_HOST_DEVICE inline int64_t max_work_items(int64_t num_rows, int64_t group_size, const WorkInput& input) {
  return num_rows * ((group_size + input.packed_rows - 1) / input.packed_rows) + input.target_items;
}

// Offsets of the sections, in int32.
struct WorkLayout {
  int64_t bin_begin, row_begin, arrivals, items, row_ranges;
};
APAR_HOST_DEVICE inline WorkLayout work_layout(int64_t num_rows, int64_t num_kv_heads, int64_t group_size,
                                               const WorkInput& input) {
  WorkLayout layout{};
  layout.bin_begin = sizeof(WorkHeader) / sizeof(int32_t);
  layout.row_begin = layout.bin_begin + input.target_items + 1;
  layout.arrivals = layout.row_begin + num_rows + 1;
  layout.items = layout.arrivals + input.target_items * num_kv_heads * kMaxParts;
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

// Entries from the lowest to the highest that rows of a strand read of a walk entry.
struct Span {
  int32_t low = kEndOfWalk, high = 0;
  APAR_HOST_DEVICE void add(int32_t begin, int32_t end) {
    low = begin < low ? begin : low;
    high = end > high ? end : high;
  }
};

// What a strand of a class pays for [low, high): a quarter of the time in which 16 entries come from memory is 1. A
// wide strand has one warp for 16 rows, which is not quite done with a block when the next has come.
APAR_HOST_DEVICE inline int32_t step_cost(int32_t strand_class, int32_t low, int32_t high) {
  if (high <= low) return 0;
  const int32_t sixteens = (high + 15) / 16 - low / 16;
  const int32_t blocks = (high + kBlockEntries - 1) / kBlockEntries - low / kBlockEntries;
  return strand_class == 2 ? 5 * sixteens + 4 * blocks : 4 * sixteens + (strand_class + 1) * blocks;
}
constexpr int32_t kSegmentCost = 68;  // a full one of 256 entries in the narrowest class: bins are not made smaller
constexpr int32_t kShortStrand = 4;   // strands of at most this part of a bin are not cut

// The rows of a strand, or for a group that does not fit, the packed rows of one row.
struct Strands {
  int32_t group, packed_rows;
  APAR_HOST_DEVICE bool whole_rows() const { return group <= packed_rows; }
  APAR_HOST_DEVICE int32_t rows() const { return whole_rows() ? packed_rows / group : 1; }
  APAR_HOST_DEVICE int32_t per_row() const { return whole_rows() ? 1 : (group + packed_rows - 1) / packed_rows; }
  // Of a tile.
  APAR_HOST_DEVICE int32_t count(int32_t tile_rows) const { return (tile_rows + rows() - 1) / rows() * per_row(); }
};

// What a tile pays and reads in strands of a class: the sums over its walk entries of this function.
struct TileCost {
  int64_t cost = 0;
  int64_t entries = 0;
  APAR_HOST_DEVICE void add(const Span& span, int32_t strand_class) {
    cost += step_cost(strand_class, span.low, span.high);
    entries += span.high > span.low ? span.high - span.low : 0;
  }
};
inline TileCost walk_cost(const PlanView& plan, int32_t walk, int32_t first_row, const Strands& strands,
                          int32_t strand_class) {
  TileCost sum;
  int32_t strand = -1;
  Span span;
  for (int32_t i = plan.walk_reader[walk]; i < plan.walk_reader[walk + 1]; ++i) {
    const PlanReader& reader = plan.readers[i];
    const int32_t mine = (reader.row - first_row) / strands.rows();
    if (mine != strand) {
      sum.add(span, strand_class);
      span = {};
      strand = mine;
    }
    span.add(reader.begin, reader.end);
  }
  sum.add(span, strand_class);
  return {sum.cost * strands.per_row(), sum.entries * strands.per_row()};
}

// The class that is cheapest for a tile, of those that read at most a twentieth more than the widest one does; the
// wider of two that cost the same.
inline int32_t class_of_tile(const PlanView& plan, int32_t tile, const WorkInput& input) {
  const int32_t first_row = plan.tile_row[tile], rows = plan.tile_row[tile + 1] - first_row,
                group = plan.header->group_size;
  TileCost sums[kStrandClasses];
  bool possible[kStrandClasses] = {};
  int32_t widest = 0;
  for (int32_t strand_class = 0; strand_class < kStrandClasses; ++strand_class) {
    const int32_t packed_rows = class_rows(strand_class);
    if (packed_rows > input.packed_rows) break;
    if (group > packed_rows && packed_rows < input.packed_rows) continue;  // groups stay whole where they fit
    for (int32_t walk = plan.tile_walk[tile]; walk < plan.tile_walk[tile + 1]; ++walk) {
      const TileCost sum = walk_cost(plan, walk, first_row, {group, packed_rows}, strand_class);
      sums[strand_class].cost += sum.cost;
      sums[strand_class].entries += sum.entries;
    }
    possible[strand_class] = true;
    widest = strand_class;
    if (rows * group <= packed_rows) break;  // all rows in one strand
  }
  int32_t best = widest;
  for (int32_t strand_class = widest - 1; strand_class >= 0; --strand_class) {
    if (possible[strand_class] && 20 * sums[strand_class].entries <= 21 * sums[widest].entries &&
        sums[strand_class].cost < sums[best].cost) {
      best = strand_class;
    }
  }
  return best;
}

// The span of rows [first_row, end_row) in a walk entry, whose readers are in the order of rows.
inline Span strand_span(const PlanView& plan, int32_t walk, int32_t first_row, int32_t end_row) {
  int32_t low = plan.walk_reader[walk], high = plan.walk_reader[walk + 1];
  const int32_t end = high;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (plan.readers[middle].row < first_row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  Span span;
  for (int32_t i = low; i < end && plan.readers[i].row < end_row; ++i) {
    span.add(plan.readers[i].begin, plan.readers[i].end);
  }
  return span;
}

// Calls take(walk, begin, cost) for every segment of rows [first_row, end_row) of a tile, in order.
template <typename Take>
void for_each_segment(const PlanView& plan, int32_t tile, int32_t first_row, int32_t end_row, int32_t strand_class,
                      Take&& take) {
  for (int32_t walk = plan.tile_walk[tile]; walk < plan.tile_walk[tile + 1]; ++walk) {
    const Span span = strand_span(plan, walk, first_row, end_row);
    for (int32_t begin = segment_begin(span.low), end = 0; begin < span.high; begin = end) {
      end = begin + segment_entries(begin);
      take(walk, begin,
           step_cost(strand_class, begin > span.low ? begin : span.low, end < span.high ? end : span.high));
    }
  }
}

// The strand's packed rows, and a walk over all strands in order.
struct Strand {
  int32_t tile, strand_class, first_row, end_row, first_packed, num_packed;
};
template <typename Take>
void for_each_strand(const PlanView& plan, const WorkInput& input, Take&& take) {
  const int32_t group = plan.header->group_size;
  for (int32_t tile = 0; tile < plan.header->num_tiles; ++tile) {
    const int32_t strand_class = class_of_tile(plan, tile, input);
    const Strands strands{group, class_rows(strand_class)};
    const int32_t tile_begin = plan.tile_row[tile], tile_end = plan.tile_row[tile + 1];
    for (int32_t row = tile_begin; row < tile_end; row += strands.rows()) {
      const int32_t end_row = row + strands.rows() < tile_end ? row + strands.rows() : tile_end;
      for (int32_t piece = 0; piece < strands.per_row(); ++piece) {
        const int32_t skipped = piece * strands.packed_rows, packed = (end_row - row) * group - skipped;
        take(Strand{tile, strand_class, row, end_row, row * group + skipped,
                    packed < strands.packed_rows ? packed : strands.packed_rows});
      }
    }
  }
}

// The bin of a place on the line of all strands.
APAR_HOST_DEVICE inline int32_t bin_of(int64_t place, int64_t total, int32_t num_bins) {
  const int64_t bin = total > 0 ? place * num_bins / total : 0;
  return bin < num_bins ? static_cast<int32_t>(bin) : num_bins - 1;
}

// Whether a row reads the stream.
inline bool row_reads(const int32_t* row_begin, const RowRange* row_ranges, int32_t row, int32_t stream) {
  for (int32_t i = row_begin[row]; i < row_begin[row + 1]; ++i) {
    if (row_ranges[i].stream / 2 == stream) return true;
  }
  return false;
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
      row_ranges[row_begin[reader.row]++] = {walk, plan.walk_stream[walk] * 2, reader.begin, reader.end};
    }
  }
  for (int32_t row = header.num_rows; row > 0; --row) row_begin[row] = row_begin[row - 1];
  row_begin[0] = 0;
}

// Marks the streams of a tile that several of its strands read, or the rows beside the tile (rows stand in the order of
// their tree, so whoever shares a stream is a neighbour).
inline void mark_shared_streams(const PlanView& plan, int32_t tile, const Strands& strands, const int32_t* row_begin,
                                RowRange* row_ranges) {
  const int32_t first_row = plan.tile_row[tile], end_row = plan.tile_row[tile + 1];
  for (int32_t walk = plan.tile_walk[tile]; walk < plan.tile_walk[tile + 1]; ++walk) {
    const int32_t begin = plan.walk_reader[walk], end = plan.walk_reader[walk + 1], stream = plan.walk_stream[walk];
    const auto strand_of = [&](int32_t reader) { return (plan.readers[reader].row - first_row) / strands.rows(); };
    const bool shared = strands.per_row() > 1 || strand_of(begin) != strand_of(end - 1) ||
                        (first_row > 0 && row_reads(row_begin, row_ranges, first_row - 1, stream)) ||
                        (end_row < plan.header->num_rows && row_reads(row_begin, row_ranges, end_row, stream));
    if (!shared) continue;
    for (int32_t reader = begin; reader < end; ++reader) {
      const int32_t row = plan.readers[reader].row;
      for (int32_t i = row_begin[row]; i < row_begin[row + 1]; ++i) {
        if (row_ranges[i].walk == walk) row_ranges[i].stream |= 1;
      }
    }
  }
}

}  // namespace work_detail

// Writes the work list of a plan. Cost O(rows + ranges + segments) times the logarithm of a tile's rows.
inline void write_work(const int32_t* schedule, const WorkInput& input, int32_t* work) {
  using work_detail::Strand;
  const PlanView plan(schedule);
  const PlanHeader& planned = *plan.header;
  const WorkLayout layout = work_layout(planned.num_rows, planned.num_kv_heads, planned.group_size, input);
  int32_t* row_begin = work + layout.row_begin;
  RowRange* row_ranges = reinterpret_cast<RowRange*>(work + layout.row_ranges);
  WorkItem* items = reinterpret_cast<WorkItem*>(work + layout.items);
  work_detail::write_row_ranges(plan, row_ranges, row_begin);
  for (int64_t i = layout.arrivals; i < layout.items; ++i) work[i] = 0;

  const auto cost_of = [&](const Strand& strand) {
    int64_t cost = 0;
    work_detail::for_each_segment(plan, strand.tile, strand.first_row, strand.end_row, strand.strand_class,
                                  [&](int32_t, int32_t, int32_t segment) { cost += segment; });
    return cost;
  };
  int64_t total = 0;
  int32_t tile = -1;
  work_detail::for_each_strand(plan, input, [&](const Strand& strand) {
    total += cost_of(strand);
    if (strand.tile == tile) return;
    tile = strand.tile;
    work_detail::mark_shared_streams(plan, tile, {planned.group_size, class_rows(strand.strand_class)}, row_begin,
                                     row_ranges);
  });
  const int64_t most_bins = total / work_detail::kSegmentCost;
  const int32_t num_bins = most_bins < 1                    ? 1
                           : most_bins < input.target_items ? static_cast<int32_t>(most_bins)
                                                            : input.target_items;

  WorkHeader header{.magic = kWorkMagic,
                    .num_items = 0,
                    .num_merges = 0,
                    .num_partials = 0,
                    .packed_rows = input.packed_rows,
                    .max_page = planned.max_page,
                    .num_bins = num_bins,
                    .reserved = 0};
  int32_t* bin_begin = work + layout.bin_begin;
  int32_t bins_begun = 0;
  const auto add = [&](WorkItem& item, int32_t bin) {
    while (bins_begun <= bin) bin_begin[bins_begun++] = header.num_items;
    item.index = header.num_items;
    items[header.num_items++] = item;
  };

  int64_t place = 0;   // on the line, where the strand begins
  int64_t wanted = 0;  // partial results that all cuts so far would leave
  work_detail::for_each_strand(plan, input, [&](const Strand& strand) {
    const auto for_each_segment = [&](auto&& take) {
      int64_t middle = place;
      work_detail::for_each_segment(plan, strand.tile, strand.first_row, strand.end_row, strand.strand_class,
                                    [&](int32_t walk, int32_t begin, int32_t cost) {
                                      take(walk, begin, work_detail::bin_of(middle + cost / 2, total, num_bins));
                                      middle += cost;
                                    });
    };
    const int64_t cost = cost_of(strand);
    const int32_t strips = (strand.num_packed + kStripRows - 1) / kStripRows;

    // The cuts, counted first: they are made if all partial results up to here have a place.
    int32_t pieces = 1, partials = 0;
    if (cost * num_bins * work_detail::kShortStrand > total) {
      int32_t last_bin = -1, later_segments = 0;
      for_each_segment([&](int32_t, int32_t, int32_t bin) {
        if (last_bin >= 0 && bin != last_bin) ++pieces;
        later_segments += pieces > 1 ? 1 : 0;
        last_bin = bin;
      });
      if (pieces > 1) partials = (input.batch_invariant != 0 ? 1 + later_segments : pieces) * strips;
      wanted += partials;
      if (wanted > input.max_partials) pieces = 1;
    }

    WorkItem item{};
    item.first_packed = strand.first_packed;
    item.num_packed = strand.num_packed;
    item.begin_walk = plan.tile_walk[strand.tile];
    item.end_walk = kEndOfWalk;
    item.merge = -1;
    if (pieces == 1) {
      add(item, work_detail::bin_of(place + cost / 2, total, num_bins));
    } else {
      item.merge = header.num_merges++;
      item.merge_begin = header.num_items;
      item.merge_end = header.num_items + pieces;
      item.partial = header.num_partials;
      int32_t last_bin = -1, segments = 0;
      for_each_segment([&](int32_t walk, int32_t begin, int32_t bin) {
        if (last_bin >= 0 && bin != last_bin) {
          item.end_walk = walk;
          item.end_entry = begin;
          add(item, last_bin);
          item.partial += (item.leaves_segments != 0 ? segments : 1) * strips;
          item.leaves_segments = input.batch_invariant;
          item.begin_walk = walk;
          item.begin_entry = begin;
          item.end_walk = kEndOfWalk;
          item.end_entry = 0;
          segments = 0;
        }
        ++segments;
        last_bin = bin;
      });
      add(item, last_bin);
      header.num_partials += partials;
    }
    place += cost;
  });
  while (bins_begun <= input.target_items) bin_begin[bins_begun++] = header.num_items;
  std::memcpy(work, &header, sizeof(header));
}

}  // namespace apar
