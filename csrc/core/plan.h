// The attention plan of one step, made once and used by every layer.
//
// Rows are grouped, in the order given, into *tiles*: runs of neighbouring rows that read the same streams. A tile's
// *walk* lists each (stream, occurrence) that its rows read once, in order of first appearance, and under each walk
// entry its *readers*: the rows that read it and which entries they see. A kernel walks a tile's streams once and loads
// each KV page once for all readers.
//
// A row joins the open tile if its ranges meet the walk in the walk's order (new streams go to the walk's end) and it
// shares at least one stream with the tile; otherwise it opens the next tile. So every row's own order of ranges is
// kept, which is what makes its result independent of the tile that it landed in. A row without entries joins any tile.
//
// Everything lies in one int32 buffer, the schedule, whose size is a function of the number of rows and ranges alone:
//   header | tile_row [R + 1] | tile_walk [R + 1] | walk_stream [N] | walk_reader [N + 1] | readers [N] x (row, begin,
//   end) | scratch
#pragma once

#include <cstdint>
#include <cstring>

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

// Where the sections of a schedule lie. `Int` is int32_t for the writer and const int32_t for readers.
struct PlanLayout {
  int64_t tile_row, tile_walk, walk_stream, walk_reader, readers, walk_occurrence, walk_seen, walk_uses, range_walk,
      table, size;
};

// Slots of the planner's hash table: a power of two, at most half of them used; never more than 4 N + 4.
inline int64_t plan_table_slots(int64_t num_ranges) {
  int64_t slots = 4;
  while (slots < 2 * num_ranges) slots *= 2;
  return slots;
}

inline PlanLayout plan_layout(int64_t num_rows, int64_t num_ranges) {
  PlanLayout layout{};
  int64_t offset = sizeof(PlanHeader) / sizeof(int32_t);
  const auto take = [&offset](int64_t count) {
    const int64_t start = offset;
    offset += count;
    return start;
  };
  layout.tile_row = take(num_rows + 1);
  layout.tile_walk = take(num_rows + 1);
  layout.walk_stream = take(num_ranges);
  layout.walk_reader = take(num_ranges + 1);
  layout.readers = take(3 * num_ranges);
  layout.walk_occurrence = take(num_ranges);
  layout.walk_seen = take(num_ranges);
  layout.walk_uses = take(num_ranges);
  layout.range_walk = take(num_ranges);
  layout.table = take(4 * num_ranges + 4);
  layout.size = offset;
  return layout;
}

// Length of the schedule of at most num_rows rows and num_ranges ranges: 2 R + 13 N + 23. It grows with both, so a
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

namespace plan_detail {

// Finds the walk entry of (stream, occurrence) within the open tile. Slots hold walk indices + 1; indices before the
// open tile's first entry are stale and count as empty, so that the table needs no clearing between tiles.
class WalkTable {
 public:
  WalkTable(int32_t* slots, int64_t count, int32_t* walk_stream, int32_t* walk_occurrence)
      : slots_(slots), mask_(static_cast<uint32_t>(count - 1)), stream_(walk_stream), occurrence_(walk_occurrence) {
    std::memset(slots, 0, static_cast<size_t>(count) * sizeof(int32_t));
  }

  // The walk entry, or -1; `slot` is where it is or belongs.
  int32_t find(int32_t stream, int32_t occurrence, int32_t tile_begin, uint32_t& slot) const {
    slot = (static_cast<uint32_t>(stream) * 0x9e3779b1u + static_cast<uint32_t>(occurrence) * 0x85ebca6bu);
    slot = (slot ^ (slot >> 15)) & mask_;
    while (slots_[slot] > tile_begin) {
      const int32_t walk = slots_[slot] - 1;
      if (stream_[walk] == stream && occurrence_[walk] == occurrence) return walk;
      slot = (slot + 1) & mask_;
    }
    return -1;
  }

  void insert(uint32_t slot, int32_t walk, int32_t stream, int32_t occurrence) {
    stream_[walk] = stream;
    occurrence_[walk] = occurrence;
    slots_[slot] = walk + 1;
  }

 private:
  int32_t* slots_;
  uint32_t mask_;
  int32_t* stream_;
  int32_t* occurrence_;
};

}  // namespace plan_detail

// Writes the plan of ranges that are known to be valid (check_plan_input). Cost O(R + row_indptr[R]); allocates
// nothing.
inline void write_plan(const PlanInput& input, int32_t* schedule) {
  const PlanLayout layout = plan_layout(input.num_rows, input.num_ranges);
  int32_t* tile_row = schedule + layout.tile_row;
  int32_t* tile_walk = schedule + layout.tile_walk;
  int32_t* walk_reader = schedule + layout.walk_reader;
  int32_t* walk_seen =
      schedule + layout.walk_seen;  // in entries of occurrence 0: the last pass that met the stream ...
  int32_t* walk_uses = schedule + layout.walk_uses;  // ... and how often it did
  int32_t* range_walk = schedule + layout.range_walk;
  PlanReader* readers = reinterpret_cast<PlanReader*>(schedule + layout.readers);
  const int32_t used_ranges = input.num_rows > 0 ? input.row_indptr[input.num_rows] : 0;
  plan_detail::WalkTable table(schedule + layout.table, plan_table_slots(used_ranges), schedule + layout.walk_stream,
                               schedule + layout.walk_occurrence);
  const int64_t most_rows = kMaxPackedRows / input.group_size;
  const int32_t max_tile_rows = most_rows > 1 ? static_cast<int32_t>(most_rows) : 1;

  int32_t num_tiles = 0, num_walk = 0, walk_begin = 0, first_row = 0, largest_tile = 0;
  uint32_t slot = 0;
  // The walk entry that the row's next use of `stream` means, or -1; `pass` numbers the passes over rows from 1.
  const auto find = [&](int32_t stream, int32_t pass, int32_t& occurrence) {
    occurrence = 0;
    const int32_t first = table.find(stream, 0, walk_begin, slot);
    if (first < 0) return -1;
    if (walk_seen[first] != pass) {
      walk_seen[first] = pass;
      walk_uses[first] = 0;
    }
    occurrence = walk_uses[first]++;
    return occurrence == 0 ? first : table.find(stream, occurrence, walk_begin, slot);
  };
  const auto close_tile = [&](int32_t row) {
    if (row - first_row > largest_tile) largest_tile = row - first_row;
    first_row = row;
    walk_begin = num_walk;
    tile_row[++num_tiles] = row;
    tile_walk[num_tiles] = num_walk;
  };

  tile_row[0] = 0;
  tile_walk[0] = 0;
  for (int32_t row = 0; row < input.num_rows; ++row) {
    const int32_t begin = input.row_indptr[row], end = input.row_indptr[row + 1];
    int32_t occurrence = 0;
    bool fits = row - first_row < max_tile_rows;
    if (fits && num_walk > walk_begin) {
      bool shares = false, reads = false, appends = false;
      int32_t last = -1;
      for (int32_t i = begin; i < end && fits; ++i) {
        if (input.range_begin[i] >= input.range_end[i]) continue;
        reads = true;
        const int32_t walk = find(input.range_stream[i], 2 * row + 1, occurrence);
        if (walk < 0) {
          appends = true;
        } else {
          fits = !appends && walk > last;
          shares = true;
          last = walk;
        }
      }
      fits = fits && (shares || !reads);
    }
    if (!fits) close_tile(row);
    for (int32_t i = begin; i < end; ++i) {
      if (input.range_begin[i] >= input.range_end[i]) continue;
      const int32_t stream = input.range_stream[i];
      int32_t walk = find(stream, 2 * row + 2, occurrence);
      if (walk < 0) {
        walk = num_walk++;
        table.insert(slot, walk, stream, occurrence);
        walk_seen[walk] = 2 * row + 2;
        walk_uses[walk] = 1;
        walk_reader[walk + 1] = 0;
      }
      range_walk[i] = walk;
      ++walk_reader[walk + 1];
    }
  }
  if (input.num_rows > 0) close_tile(static_cast<int32_t>(input.num_rows));

  // Counts to offsets; each offset then serves as the cursor of the entry before it while readers are dealt out.
  walk_reader[0] = 0;
  for (int32_t walk = 0; walk < num_walk; ++walk) walk_reader[walk + 1] += walk_reader[walk];
  const int32_t num_readers = walk_reader[num_walk];
  for (int32_t walk = num_walk; walk > 0; --walk) walk_reader[walk] = walk_reader[walk - 1];
  for (int32_t row = 0; row < input.num_rows; ++row) {
    for (int32_t i = input.row_indptr[row]; i < input.row_indptr[row + 1]; ++i) {
      if (input.range_begin[i] >= input.range_end[i]) continue;
      readers[walk_reader[range_walk[i] + 1]++] = {row, input.range_begin[i], input.range_end[i]};
    }
  }

  const PlanHeader header = {.magic = kPlanMagic,
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
