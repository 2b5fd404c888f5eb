// The attention plan (core/plan.h) made by one block of threads: the same schedule as write_plan's, all sections but
// the scratch.
//
// Ranges that partners share a walk entry with form chains, each with at most one range per row; pointer doubling finds
// the first range of every chain and the place in it. All else is prefix sums over rows, ranges and walk entries.
#pragma once

#include "core/forest_rules.h"
#include "core/plan.h"
#include "cuda/numbers.cuh"
#include "cuda/scan.cuh"

namespace apar::cuda {

// What a layer with a sliding window sees of ranges; window 0: all.
struct WindowView {
  const int32_t* row_position = nullptr;    // [R]
  const int32_t* first_position = nullptr;  // [S]
  int32_t* begins = nullptr;                // [N], gets what is seen, if it is there
  int32_t window = 0;
};

// Numbers of the work space.
APAR_HOST_DEVICE inline int64_t plan_work_space(int64_t num_rows, int64_t num_ranges) {
  return 7 * num_ranges + 4 * (num_rows + 1);
}

template <class Ints>
struct PlanWorkSpace {
  Ints row_begin;           // [R + 1]
  Ints row_reader;          // [R + 1], ranges of all rows before that are not empty
  Ints row_tile;            // [R]
  Ints row_strand;          // [R], for the work list
  Ints stream, begin, end;  // [N], stream -1 where the range is empty
  Ints link, spare;         // [N], link: (range, places towards it) while chains are followed, then the first of each
  Ints next;                // [N], the range that follows in the chain, -1: none; then the walk entry
  Ints walk;                // [N], walk entry of the first range of a chain

  APAR_DEVICE PlanWorkSpace(Arena<Ints>& arena, int32_t num_rows, int32_t num_ranges)
      : row_begin(arena.take(num_rows + 1)),
        row_reader(arena.take(num_rows + 1)),
        row_tile(arena.take(num_rows + 1)),
        row_strand(arena.take(num_rows + 1)),
        stream(arena.take(num_ranges)),
        begin(arena.take(num_ranges)),
        end(arena.take(num_ranges)),
        link(arena.take(num_ranges)),
        spare(arena.take(num_ranges)),
        next(arena.take(num_ranges)),
        walk(arena.take(num_ranges)) {}
};

struct PlanTotals {
  int32_t num_tiles, num_walk, num_readers, largest_tile;
};

// For ranges that nobody has checked: bad ones are left out, and reported.
struct RangeCheck {
  DeviceReport* report = nullptr;  // null: all is known to be good
  bool no_ranges = false;          // row_indptr is bad

  APAR_DEVICE bool accepts(const PlanInput& input, int32_t range, int32_t stream, int32_t begin, int32_t end) const {
    if (report == nullptr) return true;
    const bool good = stream >= 0 && stream < input.num_streams && begin >= 0 && begin <= end &&
                      end <= int64_t{input.max_pages} * input.page_size;
    if (!good) cuda::report(report, DeviceFault::kPlanRange, range, stream, input.num_streams - 1);
    return good;
  }
};

namespace plan_detail {

// A link holds a range and how many ranges of the chain lie between.
constexpr int kDistanceBits = 8;
static_assert(kMaxPackedRows <= 1 << kDistanceBits);
constexpr int64_t kMostRanges = int64_t{1} << (31 - kDistanceBits);
APAR_DEVICE int32_t make_link(int32_t range, int32_t distance) { return range << kDistanceBits | distance; }
APAR_DEVICE int32_t range_of(int32_t link) { return link >> kDistanceBits; }
APAR_DEVICE int32_t distance_of(int32_t link) { return link & ((1 << kDistanceBits) - 1); }

struct RowCounts {
  int32_t tiles = 0, walks = 0, readers = 0, largest_tile = 0;
  static APAR_DEVICE RowCounts combine(const RowCounts& left, const RowCounts& right) {
    return {left.tiles + right.tiles, left.walks + right.walks, left.readers + right.readers,
            left.largest_tile > right.largest_tile ? left.largest_tile : right.largest_tile};
  }
};

}  // namespace plan_detail

// All threads of the block call. The work space is filled: behind a barrier `next` holds the walk entry of every range
// that is not empty, and `row_*`, `stream`, `begin`, `end` what they say. The schedule's scratch says which range each
// reader is.
template <class Ints>
class BlockPlan {
 public:
  APAR_DEVICE BlockPlan(const PlanInput& input, const WindowView& window, const RangeCheck& check,
                        PlanWorkSpace<Ints>& space, BlockScan& scan, int32_t* schedule)
      : input_(input),
        window_(window),
        check_(check),
        space_(space),
        scan_(scan),
        thread_(thread_index()),
        threads_(block_size()),
        num_rows_(static_cast<int32_t>(input.num_rows)),
        layout_(plan_layout(input.num_rows, input.num_ranges)),
        schedule_{schedule} {}

  APAR_DEVICE PlanTotals write() {
    load();
    synchronize_block();
    pair_rows();
    synchronize_block();
    follow_chains();
    count_readers();
    deal_out_readers();
    if (thread_ == 0) write_header();
    return totals_;
  }

 private:
  APAR_DEVICE void load() {
    for (int32_t row = thread_; row <= num_rows_; row += threads_) {
      space_.row_begin[row] = check_.no_ranges ? 0 : load_global(input_.row_indptr + row);
    }
    if (check_.no_ranges) return;
    for (int32_t row = thread_; row < num_rows_; row += threads_) {
      const int32_t first = load_global(input_.row_indptr + row), last = load_global(input_.row_indptr + row + 1);
      const int32_t position = window_.window > 0 ? load_global(window_.row_position + row) : 0;
      for (int32_t i = first; i < last; ++i) {
        const int32_t stream = load_global(input_.range_stream + i), end = load_global(input_.range_end + i);
        int32_t begin = load_global(input_.range_begin + i);
        if (!check_.accepts(input_, i, stream, begin, end)) {
          begin = end;
        } else if (window_.window > 0) {
          begin = window_begin(position, window_.window, load_global(window_.first_position + stream), begin, end);
        }
        if (window_.begins != nullptr) store_global(window_.begins + i, begin);
        space_.stream[i] = begin < end ? stream : -1;
        space_.begin[i] = begin;
        space_.end[i] = end;
        space_.next[i] = -1;
      }
    }
  }

  // Tiles, walk entries, and the links of all ranges.
  APAR_DEVICE void pair_rows() {
    using namespace plan_detail;
    const int32_t max_tile_rows = most_tile_rows(input_.group_size);
    const auto stream_of = [&](int32_t i) { return static_cast<int32_t>(space_.stream[i]); };
    Maxima<1> last_reading, last_start;
    RowCounts counts;
    for (int32_t first_row = 0; first_row < num_rows_; first_row += threads_) {
      const int32_t row = first_row + thread_;
      const bool valid = row < num_rows_;
      const int32_t begin = valid ? static_cast<int32_t>(space_.row_begin[row]) : 0;
      const int32_t end = valid ? static_cast<int32_t>(space_.row_begin[row + 1]) : 0;
      int32_t first = begin;
      while (first < end && stream_of(first) < 0) ++first;
      const bool reads = first < end;

      Maxima<1> reading;
      if (reads) reading.of[0] = row;
      const auto readers = scan_(reading, last_reading);
      last_reading = readers.total;
      const int32_t before = readers.before.of[0];
      int32_t cursor = 0, cursor_end = 0, partner = -1;
      if (reads && before >= 0) {
        cursor = space_.row_begin[before];
        cursor_end = space_.row_begin[before + 1];
        partner = match_stream(stream_of, stream_of(first), cursor, cursor_end);
      }
      Maxima<1> start;
      if (row == 0 || (reads && before >= 0 && partner < 0)) start.of[0] = row;
      const auto starts = scan_(start, last_start);
      last_start = starts.total;
      const int32_t run = starts.with.of[0], tile_row = run + (row - run) / max_tile_rows * max_tile_rows;

      const bool paired = partner >= 0 && before >= tile_row;
      RowCounts mine;
      for (int32_t i = begin; i < end; ++i) {
        const int32_t stream = stream_of(i);
        if (stream >= 0) {
          ++mine.readers;
          if (paired && i > first) partner = match_stream(stream_of, stream, cursor, cursor_end);
        }
        if (stream >= 0 && paired && partner >= 0) {
          space_.link[i] = make_link(partner, 1);
          space_.next[partner] = i;
        } else {
          space_.link[i] = make_link(i, 0);
          mine.walks += stream >= 0 ? 1 : 0;
        }
      }
      if (valid) mine.largest_tile = row - tile_row + 1;
      const bool opens = valid && row == tile_row;
      mine.tiles = opens ? 1 : 0;
      const auto counted = scan_(mine, counts);
      counts = counted.total;
      if (valid) {
        space_.row_reader[row] = counted.before.readers;
        space_.row_tile[row] = counted.with.tiles - 1;
      }
      int32_t walk = counted.before.walks;
      if (opens) {
        schedule_[layout_.tile_row + counted.before.tiles] = row;
        schedule_[layout_.tile_walk + counted.before.tiles] = walk;
      }
      for (int32_t i = first; i < end; ++i) {
        const int32_t stream = stream_of(i);
        if (stream < 0 || range_of(space_.link[i]) != i) continue;
        space_.walk[i] = walk;
        schedule_[layout_.walk_stream + walk] = stream;
        ++walk;
      }
    }
    totals_ = {counts.tiles, counts.walks, counts.readers, counts.largest_tile};
    if (thread_ == 0) {
      schedule_[layout_.tile_row + totals_.num_tiles] = num_rows_;
      schedule_[layout_.tile_walk + totals_.num_tiles] = totals_.num_walk;
      space_.row_reader[num_rows_] = totals_.num_readers;
    }
    num_ranges_ = num_rows_ > 0 ? static_cast<int32_t>(space_.row_begin[num_rows_]) : 0;
  }

  // Every link then leads to the first range of its chain.
  APAR_DEVICE void follow_chains() {
    using namespace plan_detail;
    for (int32_t followed = 1; followed < totals_.largest_tile; followed *= 2) {
      for (int32_t i = thread_; i < num_ranges_; i += threads_) {
        const int32_t link = space_.link[i], further = space_.link[range_of(link)];
        space_.spare[i] = make_link(range_of(further), distance_of(link) + distance_of(further));
      }
      const Ints links = space_.spare;
      space_.spare = space_.link;
      space_.link = links;
      synchronize_block();
    }
  }

  // The last range of a chain knows how many it has.
  APAR_DEVICE void count_readers() {
    using namespace plan_detail;
    for (int32_t i = thread_; i < num_ranges_; i += threads_) {
      if (space_.stream[i] < 0 || space_.next[i] >= 0) continue;
      const int32_t link = space_.link[i];
      space_.spare[space_.walk[range_of(link)]] = distance_of(link) + 1;
    }
    synchronize_block();
    Sums<1> readers;
    for (int32_t first = 0; first < totals_.num_walk; first += threads_) {
      const int32_t walk = first + thread_;
      Sums<1> mine;
      if (walk < totals_.num_walk) mine.of[0] = space_.spare[walk];
      const auto counted = scan_(mine, readers);
      readers = counted.total;
      if (walk < totals_.num_walk) {
        space_.spare[walk] = counted.before.of[0];
        schedule_[layout_.walk_reader + walk] = counted.before.of[0];
      }
    }
    if (thread_ == 0) schedule_[layout_.walk_reader + totals_.num_walk] = totals_.num_readers;
    synchronize_block();
  }

  APAR_DEVICE void deal_out_readers() {
    using namespace plan_detail;
    for (int32_t row = thread_; row < num_rows_; row += threads_) {
      const int32_t end = space_.row_begin[row + 1];
      for (int32_t i = space_.row_begin[row]; i < end; ++i) {
        if (space_.stream[i] < 0) continue;
        const int32_t link = space_.link[i], walk = space_.walk[range_of(link)];
        space_.next[i] = walk;
        const int32_t place = space_.spare[walk] + distance_of(link);
        const int64_t reader = layout_.readers + 3 * int64_t{place};
        schedule_[layout_.scratch + place] = i;
        schedule_[reader] = row;
        schedule_[reader + 1] = space_.begin[i];
        schedule_[reader + 2] = space_.end[i];
      }
    }
  }

  APAR_DEVICE void write_header() {
    const PlanHeader header =
        plan_header(input_, totals_.num_tiles, totals_.num_walk, totals_.num_readers, totals_.largest_tile);
    const int32_t* numbers = reinterpret_cast<const int32_t*>(&header);
    for (int i = 0; i < static_cast<int>(sizeof(header) / sizeof(int32_t)); ++i) schedule_[i] = numbers[i];
  }

  const PlanInput& input_;
  const WindowView& window_;
  const RangeCheck& check_;
  PlanWorkSpace<Ints>& space_;
  BlockScan& scan_;
  const int32_t thread_, threads_, num_rows_;
  const PlanLayout layout_;
  const GlobalInts schedule_;
  int32_t num_ranges_ = 0;
  PlanTotals totals_{};
};

}  // namespace apar::cuda
