// The work list of a plan (core/work.h) made by one block of threads: the numbers that write_work gives.
//
// What a strand reads of a walk entry is a run of neighbouring readers, so their spans come from a scan over readers
// that starts anew at every strand. In the order of rows, the first range of each such run stands for it, and these are
// in the order of the strand's walk: everything after that is scans over rows, each of which goes over its few ranges.
#pragma once

#include <cstddef>

#include "core/work.h"
#include "cuda/make_plan/plan.cuh"

namespace apar::cuda {

// Numbers of the work space besides the plan's.
APAR_HOST_DEVICE inline int64_t list_work_space(int64_t num_rows, int64_t group_size, const WorkInput& input) {
  const int64_t strands = num_rows * ((group_size + input.packed_rows - 1) / input.packed_rows);
  return 4 * (num_rows + 1) + 6 * strands;
}

namespace work_detail {

using namespace apar::work_detail;

struct Sum64 {
  int64_t of = 0;
  static APAR_DEVICE Sum64 combine(const Sum64& left, const Sum64& right) { return {left.of + right.of}; }
};

// What a strand reads of a walk entry, and the first range that does.
struct Run {
  int32_t begins = 0, low = kEndOfWalk, high = 0, first = 0;
  static APAR_DEVICE Run combine(const Run& left, const Run& right) {
    if (right.begins != 0) return right;
    return {left.begins, left.low < right.low ? left.low : right.low, left.high > right.high ? left.high : right.high,
            left.first};
  }
};

// What a tile pays and reads.
struct TileSum {
  TileCost sum;
  int32_t begins = 0, unused = 0;
  static APAR_DEVICE TileSum combine(const TileSum& left, const TileSum& right) {
    if (right.begins != 0) return right;
    TileSum both = left;
    both.sum.cost += right.sum.cost;
    both.sum.entries += right.sum.entries;
    return both;
  }
};

// Segments of a strand by the bins of their middles.
struct Cuts {
  int32_t begins = 0;
  int32_t segments = 0;
  int32_t changes = 0;  // from one bin to another
  int32_t first_bin = 0, last_bin = 0;
  int32_t before_change = 0;  // segments before the first change; all if there is none

  APAR_DEVICE void add(int32_t bin) {
    if (segments == 0) first_bin = bin;
    if (segments > 0 && bin != last_bin) ++changes;
    before_change += changes == 0 ? 1 : 0;
    ++segments;
    last_bin = bin;
  }
  static APAR_DEVICE Cuts combine(const Cuts& left, const Cuts& right) {
    if (right.begins != 0) return right;
    if (right.segments == 0) return left;
    Cuts both = right;
    both.begins = left.begins;
    if (left.segments == 0) return both;
    const bool change = left.last_bin != right.first_bin;
    both.segments = left.segments + right.segments;
    both.changes = left.changes + right.changes + (change ? 1 : 0);
    both.first_bin = left.first_bin;
    both.before_change = left.changes > 0 || change ? left.before_change : left.segments + right.before_change;
    return both;
  }
};

// The bins that places on the line lie in, for places that ascend.
class BinCursor {
 public:
  APAR_DEVICE BinCursor(int64_t total, int32_t num_bins) : total_(total), num_bins_(num_bins) {}
  APAR_DEVICE int32_t operator()(int64_t place) {
    if (bin_ < 0) {
      bin_ = bin_of(place, total_, num_bins_);
    } else {
      while (bin_ + 1 < num_bins_ && place * num_bins_ >= (bin_ + 1) * total_) ++bin_;
    }
    return bin_;
  }

 private:
  const int64_t total_;
  const int32_t num_bins_;
  int32_t bin_ = -1;
};

}  // namespace work_detail

// All threads of the block call, behind BlockPlan::write of the same plan. `work` is aligned to 16 bytes.
template <class Ints>
class BlockWork {
 public:
  APAR_DEVICE BlockWork(const PlanInput& planned, const PlanTotals& totals, const WorkInput& input,
                        const PlanWorkSpace<Ints>& space, Arena<Ints>& arena, BlockScan& scan, int32_t* schedule,
                        int32_t* work)
      : totals_(totals),
        input_(input),
        space_(space),
        scan_(scan),
        thread_(thread_index()),
        threads_(block_size()),
        num_rows_(static_cast<int32_t>(planned.num_rows)),
        group_(planned.group_size),
        max_page_(planned.max_page),
        // A group that fits no class falls into several strands per row; then no two rows are in one.
        per_row_(strands_of_class(widest_class()).per_row()),
        plan_(plan_layout(planned.num_rows, planned.num_ranges)),
        layout_(work_layout(planned.num_rows, planned.num_kv_heads, planned.group_size, input)),
        schedule_{schedule},
        work_{work},
        tile_class_(arena.take(num_rows_ + 1)),
        place_low_(arena.take(num_rows_ + 1)),
        place_high_(arena.take(num_rows_ + 1)),
        strand_row_(arena.take(num_rows_ + 1)) {
    for (Ints& numbers : strand_) numbers = arena.take(int64_t{num_rows_} * per_row_);
  }

  APAR_DEVICE void write() {
    for (int64_t i = layout_.arrivals + thread_; i < layout_.items; i += threads_) work_[i] = 0;
    choose_classes();
    find_spans();
    write_row_ranges();
    place_rows();
    for (int32_t part = 0; part < per_row_; ++part) count_pieces(part);
    synchronize_block();
    give_places();
    synchronize_block();
    write_first_items();
    for (int32_t part = 0; part < per_row_; ++part) write_later_items(part);
    write_header();
  }

 private:
  using Strands = work_detail::Strands;
  // Numbers per strand. Before there are strands, the first four are of tiles.
  enum { kPieces, kBeforeChange, kLastBin, kItem, kPartial, kMerge };
  enum { kEntries = 0, kLowest = 2 };  // two words each

  APAR_DEVICE int32_t widest_class() const { return input_.packed_rows == 32 ? 0 : input_.packed_rows == 64 ? 1 : 2; }
  APAR_DEVICE Strands strands_of_class(int32_t strand_class) const { return {group_, class_rows(strand_class)}; }
  APAR_DEVICE Strands strands_of_tile(int32_t tile) const { return strands_of_class(tile_class_[tile]); }
  APAR_DEVICE int32_t tile_row(int32_t tile) const { return schedule_[plan_.tile_row + tile]; }
  APAR_DEVICE int32_t tile_walk(int32_t tile) const { return schedule_[plan_.tile_walk + tile]; }

  APAR_DEVICE void store64(int which, int32_t i, int64_t value) {
    strand_[which][i] = static_cast<int32_t>(value);
    strand_[which + 1][i] = static_cast<int32_t>(value >> 32);
  }
  APAR_DEVICE int64_t load64(int which, int32_t i) const {
    return int64_t{strand_[which + 1][i]} << 32 | static_cast<uint32_t>(static_cast<int32_t>(strand_[which][i]));
  }

  // ---- readers: what a strand reads of each walk entry

  struct Reader {
    int32_t row, range, walk, tile, tile_first;
  };
  APAR_DEVICE Reader reader(int32_t i) const {
    Reader result{};
    result.row = schedule_[plan_.readers + 3 * int64_t{i}];
    result.range = schedule_[plan_.scratch + i];
    result.walk = space_.next[result.range];
    result.tile = space_.row_tile[result.row];
    result.tile_first = tile_row(result.tile);
    return result;
  }

  // Calls end_of_run(reader, run, cost scan ...) for the last reader of every run; rows_of(tile) is rows per strand.
  template <class RowsOf, class Take>
  APAR_DEVICE void for_each_run(RowsOf&& rows_of, Take&& take) {
    work_detail::Run carried;
    for (int32_t first = 0; first < totals_.num_readers; first += threads_) {
      const int32_t i = first + thread_;
      const bool valid = i < totals_.num_readers;
      work_detail::Run mine;
      Reader me{};
      bool ends = false;
      if (valid) {
        me = reader(i);
        const int32_t rows = rows_of(me.tile), strand = (me.row - me.tile_first) / rows;
        const auto same_run = [&](int32_t other) {
          const int32_t range = schedule_[plan_.scratch + other];
          const int32_t row = schedule_[plan_.readers + 3 * int64_t{other}];
          return space_.next[range] == me.walk && (row - me.tile_first) / rows == strand;
        };
        mine = {i == 0 || !same_run(i - 1) ? 1 : 0, space_.begin[me.range], space_.end[me.range], me.range};
        ends = i == totals_.num_readers - 1 || !same_run(i + 1);
      }
      const auto runs = scan_(mine, carried);
      carried = runs.total;
      take(i, valid, ends, me, runs.with);
    }
  }

  // The last of the classes that class_of_tile looks at: that in which all rows are in one strand, if there is one.
  APAR_DEVICE int32_t widest_class_of(int32_t tile) const {
    const int32_t packed = (tile_row(tile + 1) - tile_row(tile)) * group_;
    for (int32_t strand_class = 0; strand_class < widest_class(); ++strand_class) {
      if (packed <= class_rows(strand_class)) return strand_class;
    }
    return widest_class();
  }

  // As class_of_tile does: from the widest class to the narrowest, each tile's last reader knows what the tile pays and
  // reads, and is the same thread every time.
  APAR_DEVICE void choose_classes() {
    for (int32_t tile = thread_; tile < totals_.num_tiles; tile += threads_) {
      tile_class_[tile] = widest_class_of(tile);
    }
    for (int32_t strand_class = widest_class(); strand_class >= 0; --strand_class) {
      const Strands strands = strands_of_class(strand_class);
      if (group_ > strands.packed_rows && strands.packed_rows < input_.packed_rows) continue;
      work_detail::TileSum before;
      for_each_run([&](int32_t) { return strands.rows(); },
                   [&](int32_t i, bool valid, bool ends, const Reader& me, const work_detail::Run& run) {
                     work_detail::TileSum mine;
                     int32_t end = 0;
                     if (valid) {
                       mine.begins = i == schedule_[plan_.walk_reader + tile_walk(me.tile)] ? 1 : 0;
                       end = schedule_[plan_.walk_reader + tile_walk(me.tile + 1)];
                     }
                     if (ends) mine.sum.add({run.low, run.high}, strand_class);
                     const auto sums = scan_(mine, before);
                     before = sums.total;
                     if (valid && i == end - 1) compare_class(me.tile, strand_class, sums.with.sum);
                   });
    }
  }

  APAR_DEVICE void compare_class(int32_t tile, int32_t strand_class, const work_detail::TileCost& sum) {
    const int32_t widest = widest_class_of(tile);
    if (strand_class > widest) return;
    if (strand_class == widest) {
      store64(kEntries, tile, sum.entries);
    } else if (20 * sum.entries > 21 * load64(kEntries, tile) || sum.cost >= load64(kLowest, tile)) {
      return;
    }
    store64(kLowest, tile, sum.cost);
    tile_class_[tile] = strand_class;
  }

  // Of every run: low and high beside its first range; high 0 beside all others.
  APAR_DEVICE void find_spans() {
    const int32_t num_ranges = num_rows_ > 0 ? static_cast<int32_t>(space_.row_begin[num_rows_]) : 0;
    for (int32_t i = thread_; i < num_ranges; i += threads_) space_.link[i] = 0;
    synchronize_block();
    for_each_run([&](int32_t tile) { return strands_of_tile(tile).rows(); },
                 [&](int32_t, bool, bool ends, const Reader&, const work_detail::Run& run) {
                   if (!ends) return;
                   space_.spare[run.first] = run.low;
                   space_.link[run.first] = run.high;
                 });
    synchronize_block();
  }

  // ---- what rows read

  APAR_DEVICE bool row_reads(int32_t row, int32_t stream) const {
    for (int32_t i = space_.row_begin[row]; i < space_.row_begin[row + 1]; ++i) {
      if (space_.stream[i] == stream) return true;
    }
    return false;
  }

  // Whether several strands read the stream: others of the tile, or the rows beside it.
  APAR_DEVICE bool is_shared(int32_t walk, int32_t tile, int32_t stream) const {
    const Strands strands = strands_of_tile(tile);
    const int32_t first_row = tile_row(tile), end_row = tile_row(tile + 1);
    const int32_t begin = schedule_[plan_.walk_reader + walk], end = schedule_[plan_.walk_reader + walk + 1];
    const auto strand_of = [&](int32_t i) {
      return (schedule_[plan_.readers + 3 * int64_t{i}] - first_row) / strands.rows();
    };
    return strands.per_row() > 1 || strand_of(begin) != strand_of(end - 1) ||
           (first_row > 0 && row_reads(first_row - 1, stream)) || (end_row < num_rows_ && row_reads(end_row, stream));
  }

  APAR_DEVICE void write_row_ranges() {
    for (int32_t row = thread_; row <= num_rows_; row += threads_) {
      int32_t to = space_.row_reader[row];
      work_[layout_.row_begin + row] = to;
      if (row == num_rows_) break;
      for (int32_t i = space_.row_begin[row]; i < space_.row_begin[row + 1]; ++i) {
        const int32_t stream = space_.stream[i], walk = space_.next[i];
        if (stream < 0) continue;
        const int64_t at = layout_.row_ranges + 4 * int64_t{to++};
        work_[at] = walk;
        work_[at + 1] = 2 * stream + (is_shared(walk, space_.row_tile[row], stream) ? 1 : 0);
        work_[at + 2] = space_.begin[i];
        work_[at + 3] = space_.end[i];
      }
    }
  }

  // ---- strands on the line of cost

  // Calls take(walk, begin, cost) for the segments that stand in a row: those of runs that begin in it.
  template <class Take>
  APAR_DEVICE void for_each_segment(int32_t row, int32_t strand_class, Take&& take) const {
    for (int32_t i = space_.row_begin[row]; i < space_.row_begin[row + 1]; ++i) {
      const int32_t high = space_.link[i], low = high > 0 ? static_cast<int32_t>(space_.spare[i]) : 0;
      for (int32_t begin = segment_begin(low), end = 0; begin < high; begin = end) {
        end = begin + segment_entries(begin);
        take(static_cast<int32_t>(space_.next[i]), begin,
             work_detail::step_cost(strand_class, begin > low ? begin : low, end < high ? end : high));
      }
    }
  }

  APAR_DEVICE int64_t place(int32_t row) const {
    return int64_t{place_high_[row]} << 32 | static_cast<uint32_t>(static_cast<int32_t>(place_low_[row]));
  }
  APAR_DEVICE void store_place(int32_t row, int64_t value) {
    place_low_[row] = static_cast<int32_t>(value);
    place_high_[row] = static_cast<int32_t>(value >> 32);
  }

  APAR_DEVICE bool begins_strand(int32_t row) const {
    const int32_t tile = space_.row_tile[row];
    return (row - tile_row(tile)) % strands_of_tile(tile).rows() == 0;
  }

  // Where each row begins on the line of one part, and the rows with which strands begin.
  APAR_DEVICE void place_rows() {
    work_detail::Sum64 cost_before;
    Sums<1> strands_before;
    for (int32_t first = 0; first < num_rows_; first += threads_) {
      const int32_t row = first + thread_;
      work_detail::Sum64 mine;
      Sums<1> strand;
      if (row < num_rows_) {
        const int32_t strand_class = tile_class_[space_.row_tile[row]];
        for (int32_t i = space_.row_begin[row]; i < space_.row_begin[row + 1]; ++i) {
          const int32_t high = space_.link[i];
          if (high > 0) mine.of += work_detail::step_cost(strand_class, space_.spare[i], high);
        }
        strand.of[0] = begins_strand(row) ? 1 : 0;
      }
      const auto cost = scan_(mine, cost_before);
      cost_before = cost.total;
      const auto strands = scan_(strand, strands_before);
      strands_before = strands.total;
      if (row >= num_rows_) continue;
      store_place(row, cost.before.of);
      if (strand.of[0] != 0) strand_row_[strands.before.of[0]] = row;
      space_.row_strand[row] = strands.with.of[0] - 1;
    }
    num_strand_rows_ = strands_before.of[0];
    if (thread_ == 0) {
      store_place(num_rows_, cost_before.of);
      strand_row_[num_strand_rows_] = num_rows_;
    }
    total_ = cost_before.of * per_row_;
    const int64_t most_bins = total_ / work_detail::kSegmentCost;
    num_bins_ = most_bins < 1                     ? 1
                : most_bins < input_.target_items ? static_cast<int32_t>(most_bins)
                                                  : input_.target_items;
    synchronize_block();
  }

  // Strand `part` of those that begin with the same row.
  struct StrandView {
    int32_t row, end_row, first_packed, num_packed;
    int64_t place, cost;
    APAR_DEVICE int32_t strips() const { return (num_packed + kStripRows - 1) / kStripRows; }
  };
  APAR_DEVICE StrandView strand_view(int32_t strand) const {
    const int32_t begins = strand / per_row_, part = strand % per_row_;
    StrandView view{};
    view.row = strand_row_[begins];
    view.end_row = strand_row_[begins + 1];
    const int32_t most = strands_of_tile(space_.row_tile[view.row]).packed_rows, skipped = part * most;
    const int32_t packed = (view.end_row - view.row) * group_ - skipped;
    view.first_packed = view.row * group_ + skipped;
    view.num_packed = packed < most ? packed : most;
    view.cost = place(view.end_row) - place(view.row);
    view.place = place(view.row) * per_row_ + part * view.cost;
    return view;
  }

  // Of the segments in a row, for one part; `more(segment's walk, its begin, bin, cuts before it)` sees each.
  template <class More>
  APAR_DEVICE work_detail::Cuts cuts_of_row(int32_t row, int32_t part, work_detail::Cuts cuts, More&& more) const {
    int64_t middle = place(row) * per_row_ + part * (place(row + 1) - place(row));
    work_detail::BinCursor bin(total_, num_bins_);
    for_each_segment(row, tile_class_[space_.row_tile[row]], [&](int32_t walk, int32_t begin, int32_t cost) {
      const int32_t mine = bin(middle + cost / 2);
      more(walk, begin, mine, cuts);
      cuts.add(mine);
      middle += cost;
    });
    return cuts;
  }

  // Scans the cuts of rows; take(row, valid, cuts before the row within its strand, cuts with it).
  template <class Take>
  APAR_DEVICE void for_each_row_with_cuts(int32_t part, Take&& take) {
    work_detail::Cuts carried;
    for (int32_t first = 0; first < num_rows_; first += threads_) {
      const int32_t row = first + thread_;
      const bool valid = row < num_rows_;
      work_detail::Cuts mine;
      bool begins = false;
      if (valid) {
        begins = begins_strand(row);
        mine = cuts_of_row(row, part, {}, [](int32_t, int32_t, int32_t, const work_detail::Cuts&) {});
        mine.begins = begins ? 1 : 0;
      }
      const auto cuts = scan_(mine, carried);
      carried = cuts.total;
      if (valid) take(row, begins ? work_detail::Cuts{} : cuts.before, cuts.with);
    }
  }

  APAR_DEVICE void count_pieces(int32_t part) {
    for_each_row_with_cuts(part, [&](int32_t row, const work_detail::Cuts&, const work_detail::Cuts& cuts) {
      const int32_t begins = space_.row_strand[row], strand = begins * per_row_ + part;
      if (row + 1 < num_rows_ && space_.row_strand[row + 1] == begins) return;
      strand_[kPieces][strand] = cuts.changes + 1;
      strand_[kBeforeChange][strand] = cuts.before_change;
      strand_[kLastBin][strand] = cuts.last_bin;
      strand_[kPartial][strand] = cuts.segments;
    });
  }

  // Which strands are cut, and where their items and partial results lie.
  APAR_DEVICE void give_places() {
    work_detail::Sum64 wanted_before;
    Sums<3> given_before;  // items, merges, partial results
    const int32_t num_strands = num_strand_rows_ * per_row_;
    for (int32_t first = 0; first < num_strands; first += threads_) {
      const int32_t strand = first + thread_;
      const bool valid = strand < num_strands;
      StrandView view{};
      int32_t pieces = 1;
      work_detail::Sum64 partials;
      if (valid) {
        view = strand_view(strand);
        if (view.cost * num_bins_ * work_detail::kShortStrand > total_) pieces = strand_[kPieces][strand];
        if (pieces > 1) {
          const int32_t later = strand_[kPartial][strand] - strand_[kBeforeChange][strand];
          partials.of = (input_.batch_invariant != 0 ? 1 + later : pieces) * view.strips();
        }
      }
      const auto wanted = scan_(partials, wanted_before);
      wanted_before = wanted.total;
      if (wanted.with.of > input_.max_partials) pieces = 1;
      Sums<3> mine;
      mine.of[0] = valid ? pieces : 0;
      mine.of[1] = pieces > 1 ? 1 : 0;
      mine.of[2] = pieces > 1 ? static_cast<int32_t>(partials.of) : 0;
      const auto given = scan_(mine, given_before);
      given_before = given.total;
      if (!valid) continue;
      strand_[kPieces][strand] = pieces;
      if (pieces == 1) strand_[kLastBin][strand] = work_detail::bin_of(view.place + view.cost / 2, total_, num_bins_);
      strand_[kItem][strand] = given.before.of[0];
      strand_[kMerge][strand] = given.before.of[1];
      strand_[kPartial][strand] = given.before.of[2];
    }
    num_items_ = given_before.of[0];
    num_merges_ = given_before.of[1];
    num_partials_ = given_before.of[2];
  }

  // ---- items

  APAR_DEVICE GlobalInts item(int32_t index) const {
    return work_.from(layout_.items + int64_t{index} * kWorkItemInts);
  }

#define APAR_ITEM_INDEX(name) (offsetof(WorkItem, name) / sizeof(int32_t))

  // Everything but where the item begins and ends, which stands in the walk.
  APAR_DEVICE void write_item(int32_t strand, const StrandView& view, int32_t piece, int32_t partial) {
    const int32_t begin = strand_[kItem][strand], pieces = strand_[kPieces][strand];
    const GlobalInts to = item(begin + piece);
    to[APAR_ITEM_INDEX(first_packed)] = view.first_packed;
    to[APAR_ITEM_INDEX(num_packed)] = view.num_packed;
    to[APAR_ITEM_INDEX(merge)] = pieces > 1 ? static_cast<int32_t>(strand_[kMerge][strand]) : -1;
    to[APAR_ITEM_INDEX(merge_begin)] = pieces > 1 ? begin : 0;
    to[APAR_ITEM_INDEX(merge_end)] = pieces > 1 ? begin + pieces : 0;
    to[APAR_ITEM_INDEX(partial)] = partial;
    to[APAR_ITEM_INDEX(index)] = begin + piece;
    to[APAR_ITEM_INDEX(leaves_segments)] = piece > 0 ? input_.batch_invariant : 0;
    if (piece == pieces - 1) {
      to[APAR_ITEM_INDEX(end_walk)] = kEndOfWalk;
      to[APAR_ITEM_INDEX(end_entry)] = 0;
    }
  }

  // The item is the first of all bins behind `bin_before` up to `bin`.
  APAR_DEVICE void begin_bins(int32_t item, int32_t bin_before, int32_t bin) {
    for (int32_t begun = bin_before + 1; begun <= bin; ++begun) work_[layout_.bin_begin + begun] = item;
  }

  APAR_DEVICE void write_first_items() {
    const int32_t num_strands = num_strand_rows_ * per_row_;
    for (int32_t strand = thread_; strand < num_strands; strand += threads_) {
      const StrandView view = strand_view(strand);
      const int32_t pieces = strand_[kPieces][strand], index = strand_[kItem][strand];
      write_item(strand, view, 0, pieces > 1 ? static_cast<int32_t>(strand_[kPartial][strand]) : 0);
      item(index)[APAR_ITEM_INDEX(begin_walk)] = tile_walk(space_.row_tile[view.row]);
      item(index)[APAR_ITEM_INDEX(begin_entry)] = 0;
      if (pieces == 1) {
        begin_bins(index, strand > 0 ? static_cast<int32_t>(strand_[kLastBin][strand - 1]) : -1,
                   strand_[kLastBin][strand]);
      }
    }
    const int32_t last = num_strands > 0 ? static_cast<int32_t>(strand_[kLastBin][num_strands - 1]) : -1;
    for (int32_t bin = last + 1 + thread_; bin <= input_.target_items; bin += threads_) {
      work_[layout_.bin_begin + bin] = num_items_;
    }
  }

  APAR_DEVICE void write_later_items(int32_t part) {
    for_each_row_with_cuts(part, [&](int32_t row, const work_detail::Cuts& before, const work_detail::Cuts&) {
      const int32_t strand = space_.row_strand[row] * per_row_ + part, pieces = strand_[kPieces][strand];
      if (pieces == 1) return;
      const StrandView view = strand_view(strand);
      const int32_t first_item = strand_[kItem][strand], partial = strand_[kPartial][strand];
      cuts_of_row(row, part, before, [&](int32_t walk, int32_t begin, int32_t bin, const work_detail::Cuts& cuts) {
        if (cuts.segments == 0) {
          begin_bins(first_item, strand > 0 ? static_cast<int32_t>(strand_[kLastBin][strand - 1]) : -1, bin);
        }
        if (cuts.segments == 0 || bin == cuts.last_bin) return;
        const int32_t piece = cuts.changes + 1;
        const int32_t results =
            input_.batch_invariant != 0 ? 1 + cuts.segments - strand_[kBeforeChange][strand] : piece;
        write_item(strand, view, piece, partial + results * view.strips());
        item(first_item + piece - 1)[APAR_ITEM_INDEX(end_walk)] = walk;
        item(first_item + piece - 1)[APAR_ITEM_INDEX(end_entry)] = begin;
        item(first_item + piece)[APAR_ITEM_INDEX(begin_walk)] = walk;
        item(first_item + piece)[APAR_ITEM_INDEX(begin_entry)] = begin;
        begin_bins(first_item + piece, cuts.last_bin, bin);
      });
    });
  }

#undef APAR_ITEM_INDEX

  APAR_DEVICE void write_header() {
    if (thread_ != 0) return;
    const WorkHeader header{.magic = kWorkMagic,
                            .num_items = num_items_,
                            .num_merges = num_merges_,
                            .num_partials = num_partials_,
                            .packed_rows = input_.packed_rows,
                            .max_page = totals_.num_readers > 0 ? max_page_ : -1,
                            .num_bins = num_bins_,
                            .reserved = 0};
    const int32_t* numbers = reinterpret_cast<const int32_t*>(&header);
    for (int i = 0; i < static_cast<int>(sizeof(header) / sizeof(int32_t)); ++i) work_[i] = numbers[i];
  }

  const PlanTotals& totals_;
  const WorkInput& input_;
  const PlanWorkSpace<Ints>& space_;
  BlockScan& scan_;
  const int32_t thread_, threads_, num_rows_, group_, max_page_, per_row_;
  const PlanLayout plan_;
  const WorkLayout layout_;
  const GlobalInts schedule_, work_;
  Ints tile_class_;              // [T]
  Ints place_low_, place_high_;  // [R + 1]
  Ints strand_row_;              // [strands that begin with different rows, + 1]
  Ints strand_[6];
  int64_t total_ = 0;
  int32_t num_bins_ = 1, num_strand_rows_ = 0, num_items_ = 0, num_merges_ = 0, num_partials_ = 0;
};

}  // namespace apar::cuda
