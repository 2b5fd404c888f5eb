// The work list: its items cover every packed row and every segment of a tile once, in order, and partial results have
// places of their own.
#include <algorithm>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "check.h"
#include "core/plan.h"
#include "core/work.h"

namespace {

using namespace apar;

struct Ranges {
  std::vector<int32_t> indptr{0}, stream, begin, end;
};

Ranges random_ranges(std::mt19937& random, int rows) {
  const auto below = [&](int limit) { return static_cast<int32_t>(random() % limit); };
  Ranges ranges;
  for (int row = 0; row < rows; ++row) {
    for (int i = below(4); i > 0; --i) {
      const int32_t begin = below(3) == 0 ? below(40000) : 0;
      ranges.stream.push_back(below(5));
      ranges.begin.push_back(begin);
      ranges.end.push_back(begin + (below(4) == 0 ? 0 : below(below(3) == 0 ? 20000 : 700)));
    }
    ranges.indptr.push_back(static_cast<int32_t>(ranges.stream.size()));
  }
  return ranges;
}

void check_work(const Ranges& ranges, int group, int heads, const WorkInput& input) {
  const int64_t rows = static_cast<int64_t>(ranges.indptr.size()) - 1,
                count = static_cast<int64_t>(ranges.stream.size());
  std::vector<int32_t> schedule(schedule_size(rows, count), -7);
  write_plan({.num_rows = rows,
              .num_ranges = count,
              .row_indptr = ranges.indptr.data(),
              .range_stream = ranges.stream.data(),
              .range_begin = ranges.begin.data(),
              .range_end = ranges.end.data(),
              .num_streams = 5,
              .max_pages = 10000,
              .max_page = 9,
              .num_kv_heads = heads,
              .group_size = group,
              .page_size = 16},
             schedule.data());
  const PlanView plan(schedule.data());
  const WorkLayout layout = work_layout(rows, heads, group, input);
  std::vector<RowRange> storage(work_size(rows, count, heads, group, input) / 4 + 1, RowRange{-7, -7, -7, -7});
  int32_t* work = reinterpret_cast<int32_t*>(storage.data());
  write_work(schedule.data(), input, work);
  const WorkHeader& header = *reinterpret_cast<const WorkHeader*>(work);
  const WorkItem* items = reinterpret_cast<const WorkItem*>(work + layout.items);
  const RowRange* row_ranges = reinterpret_cast<const RowRange*>(work + layout.row_ranges);

  EXPECT(header.num_items <= max_work_items(rows, group, input));
  EXPECT(header.num_partials <= input.max_partials);
  EXPECT(std::all_of(work + layout.arrivals, work + layout.items, [](int32_t number) { return number == 0; }));

  // Every row has its ranges that are not empty, in its own order.
  for (int64_t row = 0; row < rows; ++row) {
    int32_t next = work[layout.row_begin + row], walk = -1;
    for (int32_t i = ranges.indptr[row]; i < ranges.indptr[row + 1]; ++i) {
      if (ranges.begin[i] >= ranges.end[i]) continue;
      const RowRange& range = row_ranges[next++];
      EXPECT(range.stream / 2 == ranges.stream[i] && range.begin == ranges.begin[i] && range.end == ranges.end[i]);
      EXPECT(range.walk > walk && plan.walk_stream[range.walk] == range.stream / 2);
      walk = range.walk;
    }
    EXPECT(next == work[layout.row_begin + row + 1]);
  }

  // Bins are runs of items, in order; those that are not used are empty.
  const int32_t* bin_begin = work + layout.bin_begin;
  EXPECT(header.num_bins >= 1 && header.num_bins <= input.target_items);
  EXPECT(bin_begin[0] == 0 && bin_begin[input.target_items] == header.num_items);
  for (int32_t bin = 0; bin < input.target_items; ++bin) {
    EXPECT(bin_begin[bin] <= bin_begin[bin + 1]);
    EXPECT(bin < header.num_bins || bin_begin[bin] == header.num_items);
  }
  EXPECT(header.num_merges < header.num_bins);

  // Strands are runs of whole rows of a tile, as wide as their class; the items of one cover its segments once, in
  // order, and partial results have places of their own.
  std::vector<bool> taken(header.num_partials, false);
  std::map<int32_t, std::pair<int32_t, bool>> readers;  // by stream: the first item that reads it; another one does
  int32_t next_item = 0, next_packed = 0;
  while (next_item < header.num_items) {
    const WorkItem& first = items[next_item];
    EXPECT(first.first_packed == next_packed && first.num_packed > 0 && first.num_packed <= input.packed_rows);
    next_packed += first.num_packed;
    const int32_t first_row = first.first_packed / group, end_row = (next_packed + group - 1) / group;
    if (group <= input.packed_rows) EXPECT(first.first_packed % group == 0 && next_packed % group == 0);
    const int32_t tile = static_cast<int32_t>(
        std::upper_bound(plan.tile_row, plan.tile_row + plan.header->num_tiles + 1, first_row) - plan.tile_row - 1);
    EXPECT(end_row <= plan.tile_row[tile + 1]);
    const int32_t strips = (first.num_packed + 15) / 16;
    std::vector<std::pair<int32_t, int32_t>> expected, found;
    const auto each_segment = [&](auto&& take) {
      work_detail::for_each_segment(plan, tile, first_row, end_row, 0, take);
    };
    each_segment([&](int32_t walk, int32_t begin, int32_t cost) {
      EXPECT(cost > 0 && begin == segment_begin(begin));
      expected.emplace_back(walk, begin);
    });
    const int32_t merge_begin = next_item, merge_end = first.merge < 0 ? next_item + 1 : first.merge_end;
    EXPECT(first.merge < 0 || (first.merge < header.num_merges && merge_end > merge_begin + 1));
    for (; next_item < merge_end; ++next_item) {
      const WorkItem& item = items[next_item];
      EXPECT(item.index == next_item && item.first_packed == first.first_packed && item.num_packed == first.num_packed);
      EXPECT(item.merge == first.merge);
      int32_t count = 0;
      each_segment([&](int32_t walk, int32_t begin, int32_t) {
        const auto place = std::pair(walk, begin);
        if (place < std::pair(item.begin_walk, item.begin_entry)) return;
        if (item.end_walk != kEndOfWalk && place >= std::pair(item.end_walk, item.end_entry)) return;
        ++count;
        found.push_back(place);
      });
      if (item.merge < 0) continue;
      EXPECT(item.merge_begin == merge_begin && item.merge_end == merge_end && count > 0);
      EXPECT(item.leaves_segments == (next_item == merge_begin ? 0 : input.batch_invariant));
      const int32_t partials = (item.leaves_segments != 0 ? count : 1) * strips;
      for (int32_t partial = item.partial; partial < item.partial + partials; ++partial) {
        EXPECT(partial < header.num_partials && !taken[partial]);
        taken[partial] = true;
      }
    }
    EXPECT(found == expected);
    for (int32_t row = first_row; row < end_row; ++row) {
      for (int32_t i = work[layout.row_begin + row]; i < work[layout.row_begin + row + 1]; ++i) {
        const auto [place, fresh] = readers.emplace(row_ranges[i].stream / 2, std::pair(first.first_packed, false));
        if (place->second.first != first.first_packed) place->second.second = true;
      }
    }
  }
  EXPECT(next_packed == rows * group);
  EXPECT(std::all_of(taken.begin(), taken.end(), [](bool one) { return one; }));
  // A stream that one strand alone reads is never called shared.
  for (int64_t i = 0; i < work[layout.row_begin + rows]; ++i) {
    if (row_ranges[i].stream % 2 != 0) EXPECT(readers[row_ranges[i].stream / 2].second);
  }
}

TEST(work_list_covers_everything_once) {
  std::mt19937 random(5);
  for (int round = 0; round < 400; ++round) {
    const int group = std::vector<int>{1, 2, 3, 4, 5, 8, 16, 71}[random() % 8];
    WorkInput input;
    input.packed_rows = std::vector<int>{32, 64, 128}[random() % 3];
    input.batch_invariant = static_cast<int32_t>(random() % 2);
    input.target_items = std::vector<int>{1, 2, 7, 40, 1000}[random() % 5];
    input.max_partials = std::vector<int>{0, 3, 64, 512}[random() % 4];
    check_work(random_ranges(random, static_cast<int>(random() % 60)), group, 1 + static_cast<int>(random() % 3),
               input);
  }
}

TEST(work_list_cuts_a_long_stream_for_all_blocks) {
  Ranges ranges;
  ranges.indptr = {0, 1};
  ranges.stream = {0};
  ranges.begin = {0};
  ranges.end = {8192};
  for (const int heads : {1, 8, 32}) check_work(ranges, 4, heads, work_input_for(1, heads, 4, 132));

  std::vector<int32_t> schedule(schedule_size(1, 1));
  write_plan({.num_rows = 1,
              .num_ranges = 1,
              .row_indptr = ranges.indptr.data(),
              .range_stream = ranges.stream.data(),
              .range_begin = ranges.begin.data(),
              .range_end = ranges.end.data(),
              .num_streams = 1,
              .max_pages = 512,
              .num_kv_heads = 8,
              .group_size = 4},
             schedule.data());
  const WorkInput input = work_input_for(1, 8, 4, 132);
  std::vector<RowRange> storage(work_size(1, 1, 8, 4, input) / 4 + 1);
  int32_t* work = reinterpret_cast<int32_t*>(storage.data());
  write_work(schedule.data(), input, work);
  // 132 blocks for 8 heads: 16 pieces of 512 entries.
  EXPECT(reinterpret_cast<const WorkHeader*>(work)->num_items == 16);
}

// Rows of a tree with one root, one leaf each.
int32_t first_item_rows(int leaves, int root, int leaf, int group) {
  Ranges ranges;
  for (int row = 0; row < leaves; ++row) {
    for (const auto& [stream, length] : {std::pair(0, root), std::pair(row + 1, leaf)}) {
      ranges.stream.push_back(stream);
      ranges.begin.push_back(0);
      ranges.end.push_back(length);
    }
    ranges.indptr.push_back(static_cast<int32_t>(ranges.stream.size()));
  }
  const int64_t count = static_cast<int64_t>(ranges.stream.size());
  std::vector<int32_t> schedule(schedule_size(leaves, count));
  write_plan({.num_rows = leaves,
              .num_ranges = count,
              .row_indptr = ranges.indptr.data(),
              .range_stream = ranges.stream.data(),
              .range_begin = ranges.begin.data(),
              .range_end = ranges.end.data(),
              .num_streams = leaves + 1,
              .max_pages = 1000,
              .num_kv_heads = 8,
              .group_size = group},
             schedule.data());
  const WorkInput input = work_input_for(leaves, 8, group, 132);
  std::vector<RowRange> storage(work_size(leaves, count, 8, group, input) / 4 + 1);
  int32_t* work = reinterpret_cast<int32_t*>(storage.data());
  write_work(schedule.data(), input, work);
  return reinterpret_cast<const WorkItem*>(work + work_layout(leaves, 8, group, input).items)->num_packed;
}

TEST(strands_are_wide_where_rows_share_much_and_narrow_where_they_do_not) {
  EXPECT(first_item_rows(256, 4096, 32, 4) == 128);
  EXPECT(first_item_rows(256, 4096, 32, 5) == 125);
  EXPECT(first_item_rows(256, 64, 2048, 4) == 32);
}

TEST(segments_grow_along_a_stream) {
  int32_t entry = 0, segments = 0;
  while (entry < 131072) {
    EXPECT(segment_begin(entry) == entry && segment_begin(entry + segment_entries(entry) - 1) == entry);
    entry += segment_entries(entry);
    ++segments;
  }
  EXPECT(entry == 131072 && segments == 80);
}

}  // namespace
