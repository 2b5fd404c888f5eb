// The attention plan of one step, made once and used by every layer.
//
// Rows are grouped, in the order given, into *tiles*: runs of neighbouring rows that read the same streams. A tile's
// *walk* lists the streams that its rows read, and under each walk entry its *readers*: the rows that read it and which
// entries they see. A kernel walks a tile's streams once and loads each KV page once for all readers.
//
// Each row is compared with one other alone, the last one before it that reads anything (match_stream): its ranges are
// paired off, in order, with ranges of that row over the same streams, and from the first one that has no partner on
// they stand alone. A row whose very first range stands alone opens a tile; so does one that would make its tile too
// large. Partners in the same tile share a walk entry; a range that stands alone gets one of its own, at the end of the
// walk. So every row meets its ranges in its own order, which is what makes its result independent of the tile that it
// landed in, and the whole plan follows from comparisons of neighbours, which a device makes all at once. In the
// reading order of a forest this shares all that can be shared. A row without entries joins any tile.
//
// Everything lies in one int32 buffer, the schedule, whose size is a function of the number of rows and ranges alone:
//   header | tile_row [R + 1] | tile_walk [R + 1] | walk_stream [N] | walk_reader [N + 1] | readers [N] x (row, begin,
//   end) | scratch
// What stands in the scratch and behind the used parts of the sections means nothing.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace apar {

constexpr int32_t kPlanMagic = 0x41504c31;
constexpr int64_t kMaxPackedRows = 128;  // rows x group of one tile, where a tile has more than one row
constexpr int64_t kMaxQueryHeads = 1024;
constexpr int64_t kMinPageSize = 8;

struct PlanInput {
  int64_t num_rows = 0;                   // R
  int64_t num_ranges = 0;                 // N, length of the range arrays; row_indptr[R] of them are in use
  const int32_t* row_indptr = nullptr;    // [R + 1]
  const int32_t* range_stream = nullptr;  // [N]
  const int32_t* range_begin = nullptr;   // [N], entries
  const int32_t* range_end = nullptr;     // [N], entries
  int32_t num_streams = 0;                // S, of the page table [S, max_pages]
  int32_t max_pages = 0;                  // of the page table
  int32_t max_page = 0;                   // no page that the ranges can meet has a larger id (see find_pages)
  int32_t num_kv_heads = 1;
  int32_t group_size = 1;
  int32_t page_size = 16;
};

struct PlanHeader {
  int32_t magic;
  int32_t num_rows;
  int32_t num_ranges;
  int32_t num_streams;
  int32_t max_pages;
  int32_t max_page;  // -1: no row reads anything
  int32_t num_kv_heads;
  int32_t group_size;
  int32_t page_size;
  int32_t num_tiles;
  int32_t num_walk;
  int32_t num_readers;
  int32_t max_tile_rows;
  int32_t reserved[3];
};
static_assert(sizeof(PlanHeader) == 16 * sizeof(int32_t));

struct PlanReader {
  int32_t row;
  int32_t begin;
  int32_t end;
};

// Where the sections of a schedule lie.
struct PlanLayout {
  int64_t tile_row, tile_walk, walk_stream, walk_reader, readers, scratch, size;
};

APAR_HOST_DEVICE inline PlanLayout plan_layout(int64_t num_rows, int64_t num_ranges) {
  PlanLayout layout{};
  layout.tile_row = sizeof(PlanHeader) / sizeof(int32_t);
  layout.tile_walk = layout.tile_row + num_rows + 1;
  layout.walk_stream = layout.tile_walk + num_rows + 1;
  layout.walk_reader = layout.walk_stream + num_ranges;
  layout.readers = layout.walk_reader + num_ranges + 1;
  layout.scratch = layout.readers + 3 * num_ranges;
  layout.size = layout.scratch + num_ranges;
  return layout;
}

// Length of the schedule of at most num_rows rows and num_ranges ranges: 2 R + 6 N + 19. It grows with both, so a
// buffer for the largest step serves every step.
inline int64_t schedule_size(int64_t num_rows, int64_t num_ranges) { return plan_layout(num_rows, num_ranges).size; }

// Read access to a schedule.
struct PlanView {
  explicit PlanView(const int32_t* schedule) : header(reinterpret_cast<const PlanHeader*>(schedule)) {
    const PlanLayout layout = plan_layout(header->num_rows, header->num_ranges);
    tile_row = schedule + layout.tile_row;
    tile_walk = schedule + layout.tile_walk;
    walk_stream = schedule + layout.walk_stream;
    walk_reader = schedule + layout.walk_reader;
    readers = reinterpret_cast<const PlanReader*>(schedule + layout.readers);
  }

  const PlanHeader* header;
  const int32_t* tile_row;     // [num_tiles + 1], rows of tile t: tile_row[t] to tile_row[t + 1]
  const int32_t* tile_walk;    // [num_tiles + 1], walk entries of tile t
  const int32_t* walk_stream;  // [num_walk]
  const int32_t* walk_reader;  // [num_walk + 1], readers of walk entry w
  const PlanReader* readers;   // [num_readers], rows ascending within a walk entry, begin < end
};

// Pairs the next range of a row, over `stream`, with one of the row before: the first over the same stream from
// `cursor` on. stream_of(i) is the stream of range i, -1 where it is empty; `end` ends the row before. Returns the
// partner, or -1: this range and all behind it stand alone. `cursor` is to be that row's first range at first, and is
// moved on.
template <class StreamOf>
APAR_HOST_DEVICE int32_t match_stream(const StreamOf& stream_of, int32_t stream, int32_t& cursor, int32_t end) {
  for (; cursor < end; ++cursor) {
    if (stream_of(cursor) == stream) return cursor++;
  }
  return -1;
}

// Most rows of a tile.
APAR_HOST_DEVICE inline int32_t most_tile_rows(int32_t group_size) {
  const int32_t rows = static_cast<int32_t>(kMaxPackedRows) / group_size;
  return rows > 1 ? rows : 1;
}

APAR_HOST_DEVICE inline PlanHeader plan_header(const PlanInput& input, int32_t num_tiles, int32_t num_walk,
                                               int32_t num_readers, int32_t largest_tile) {
  return {.magic = kPlanMagic,
          .num_rows = static_cast<int32_t>(input.num_rows),
          .num_ranges = static_cast<int32_t>(input.num_ranges),
          .num_streams = input.num_streams,
          .max_pages = input.max_pages,
          .max_page = num_readers > 0 ? input.max_page : -1,
          .num_kv_heads = input.num_kv_heads,
          .group_size = input.group_size,
          .page_size = input.page_size,
          .num_tiles = num_tiles,
          .num_walk = num_walk,
          .num_readers = num_readers,
          .max_tile_rows = largest_tile,
          .reserved = {}};
}

// Writes the plan of ranges that are known to be valid (check_plan_input). Cost O(R + row_indptr[R]); allocates
// nothing.
inline void write_plan(const PlanInput& input, int32_t* schedule) {
  const PlanLayout layout = plan_layout(input.num_rows, input.num_ranges);
  int32_t* tile_row = schedule + layout.tile_row;
  int32_t* tile_walk = schedule + layout.tile_walk;
  int32_t* walk_stream = schedule + layout.walk_stream;
  int32_t* walk_reader = schedule + layout.walk_reader;
  int32_t* range_walk = schedule + layout.scratch;  // walk entry of each range, -1 where it is empty
  PlanReader* readers = reinterpret_cast<PlanReader*>(schedule + layout.readers);
  const int32_t max_tile_rows = most_tile_rows(input.group_size);
  const auto stream_of = [&](int32_t i) {
    return input.range_begin[i] < input.range_end[i] ? input.range_stream[i] : -1;
  };

  int32_t num_tiles = 0, num_walk = 0, first_row = 0, largest_tile = 0;
  int32_t before = -1;  // the last row that read anything
  const auto close_tile = [&](int32_t row) {
    if (row - first_row > largest_tile) largest_tile = row - first_row;
    first_row = row;
    tile_row[++num_tiles] = row;
    tile_walk[num_tiles] = num_walk;
  };
  tile_row[0] = 0;
  tile_walk[0] = 0;
  for (int32_t row = 0; row < input.num_rows; ++row) {
    int32_t cursor = before >= 0 ? input.row_indptr[before] : 0;
    const int32_t cursor_end = before >= 0 ? input.row_indptr[before + 1] : 0;
    if (row - first_row == max_tile_rows) close_tile(row);
    bool reads = false;
    for (int32_t i = input.row_indptr[row]; i < input.row_indptr[row + 1]; ++i) {
      const int32_t stream = stream_of(i);
      range_walk[i] = -1;
      if (stream < 0) continue;
      const int32_t partner = match_stream(stream_of, stream, cursor, cursor_end);
      if (!reads && partner < 0 && before >= 0 && row > first_row) close_tile(row);
      reads = true;
      if (partner >= 0 && before >= first_row) {
        range_walk[i] = range_walk[partner];
      } else {
        walk_stream[num_walk] = stream;
        walk_reader[num_walk + 1] = 0;
        range_walk[i] = num_walk++;
      }
      ++walk_reader[range_walk[i] + 1];
    }
    if (reads) before = row;
  }
  if (input.num_rows > 0) close_tile(static_cast<int32_t>(input.num_rows));

  // Counts to offsets; each offset then serves as the cursor of the entry before it while readers are dealt out.
  walk_reader[0] = 0;
  for (int32_t walk = 0; walk < num_walk; ++walk) walk_reader[walk + 1] += walk_reader[walk];
  const int32_t num_readers = walk_reader[num_walk];
  for (int32_t walk = num_walk; walk > 0; --walk) walk_reader[walk] = walk_reader[walk - 1];
  for (int32_t row = 0; row < input.num_rows; ++row) {
    for (int32_t i = input.row_indptr[row]; i < input.row_indptr[row + 1]; ++i) {
      if (range_walk[i] < 0) continue;
      readers[walk_reader[range_walk[i] + 1]++] = {row, input.range_begin[i], input.range_end[i]};
    }
  }

  const PlanHeader header = plan_header(input, num_tiles, num_walk, num_readers, largest_tile);
  std::memcpy(schedule, &header, sizeof(header));
}

// What is wrong with the ranges of a plan, and where.
struct PlanFault {
  enum Kind {
    kNone,
    kIndptrStart,
    kIndptrOrder,
    kIndptrEnd,
    kStream,
    kNegative,
    kOrder,
    kPastTable,
    kPage
  } kind = kNone;
  int64_t index = 0;  // into row_indptr, the range arrays or, for kPage, the stream's entries
  int64_t value = 0;
  int64_t stream = 0;
};

inline PlanFault check_plan_input(const PlanInput& input) {
  if (input.row_indptr[0] != 0) return {PlanFault::kIndptrStart, 0, input.row_indptr[0]};
  for (int64_t row = 0; row < input.num_rows; ++row) {
    if (input.row_indptr[row + 1] < input.row_indptr[row])
      return {PlanFault::kIndptrOrder, row + 1, input.row_indptr[row + 1]};
  }
  if (input.row_indptr[input.num_rows] > input.num_ranges) {
    return {PlanFault::kIndptrEnd, input.num_rows, input.row_indptr[input.num_rows]};
  }
  const int64_t max_entries = static_cast<int64_t>(input.max_pages) * input.page_size;
  for (int64_t i = 0; i < input.row_indptr[input.num_rows]; ++i) {
    const int32_t stream = input.range_stream[i], begin = input.range_begin[i], end = input.range_end[i];
    if (stream < 0 || stream >= input.num_streams) return {PlanFault::kStream, i, stream, stream};
    if (begin < 0) return {PlanFault::kNegative, i, begin, stream};
    if (end < begin) return {PlanFault::kOrder, i, end, stream};
    if (end > max_entries) return {PlanFault::kPastTable, i, end, stream};
  }
  return {};
}

// Looks up every page that the plan's readers can meet, none else, each once per walk entry in the usual case. Returns
// a fault at a negative page id; `max_page` becomes the largest id (-1: none).
inline PlanFault find_pages(const int32_t* schedule, const int32_t* page_table, int32_t& max_page) {
  const PlanView plan(schedule);
  const int64_t max_pages = plan.header->max_pages, page_size = plan.header->page_size;
  max_page = -1;
  for (int32_t walk = 0; walk < plan.header->num_walk; ++walk) {
    const int32_t* pages = page_table + plan.walk_stream[walk] * max_pages;
    int64_t low = 0, high = 0;  // pages looked up so far, as far as they are one run
    for (int32_t i = plan.walk_reader[walk]; i < plan.walk_reader[walk + 1]; ++i) {
      const int64_t first = plan.readers[i].begin / page_size, last = (plan.readers[i].end + page_size - 1) / page_size;
      const bool touches = first <= high && last >= low && high > low;
      for (int64_t page = first; page < last; ++page) {
        if (touches && page >= low && page < high) {
          page = high - 1;
          continue;
        }
        if (pages[page] < 0) return {PlanFault::kPage, page, pages[page], plan.walk_stream[walk]};
        if (pages[page] > max_page) max_page = pages[page];
      }
      low = touches && low < first ? low : first;
      high = touches && high > last ? high : last;
    }
  }
  return {};
}

}  // namespace apar
