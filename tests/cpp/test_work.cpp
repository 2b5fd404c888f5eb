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
      EXPECT(range.stream == ranges.stream[i] && range.begin == ranges.begin[i] && range.end == ranges.end[i]);
      EXPECT(range.walk > walk && plan.walk_stream[range.walk] == range.stream);
      walk = range.walk;
    }
    EXPECT(next == work[layout.row_begin + row + 1]);
  }

  // Every packed row has its tile's segments once, in order, and nobody else's.
  std::map<int32_t, std::vector<std::pair<int32_t, int32_t>>> segments_of;  // by packed row
  std::vector<bool> taken(header.num_partials, false);
  for (int32_t i = 0; i < header.num_items; ++i) {
    const WorkItem& item = items[i];
    EXPECT(item.index == i && item.num_packed > 0 && item.num_packed <= input.packed_rows);
    const int32_t row = item.first_packed / group;
    const int32_t tile = static_cast<int32_t>(
        std::upper_bound(plan.tile_row, plan.tile_row + plan.header->num_tiles + 1, row) - plan.tile_row - 1);
    EXPECT((item.first_packed + item.num_packed - 1) / group < plan.tile_row[tile + 1]);
    int32_t count_of_item = 0;
    work_detail::for_each_segment(plan, tile, [&](int32_t walk, int32_t begin, int32_t) {
      const auto place = std::pair(walk, begin);
      if (place < std::pair(item.begin_walk, item.begin_entry)) return;
      if (item.end_walk != kEndOfWalk && place >= std::pair(item.end_walk, item.end_entry)) return;
      ++count_of_item;
      for (int32_t packed = item.first_packed; packed < item.first_packed + item.num_packed; ++packed) {
        segments_of[packed].push_back(place);
      }
    });
    if (item.merge < 0) continue;
    EXPECT(item.merge < header.num_merges && item.merge_begin <= i && i < item.merge_end &&
           item.merge_end > item.merge_begin + 1);
    const int32_t partials = i == item.merge_begin ? 1 : count_of_item;
    for (int32_t partial = item.partial; partial < item.partial + partials; ++partial) {
      EXPECT(partial < header.num_partials && !taken[partial]);
      taken[partial] = true;
    }
  }
  EXPECT(std::all_of(taken.begin(), taken.end(), [](bool one) { return one; }));
  for (int32_t tile = 0; tile < plan.header->num_tiles; ++tile) {
    std::vector<std::pair<int32_t, int32_t>> expected;
    work_detail::for_each_segment(plan, tile, [&](int32_t walk, int32_t begin, int32_t blocks) {
      EXPECT(blocks > 0 && begin == segment_begin(begin));
      expected.emplace_back(walk, begin);
    });
    for (int32_t packed = plan.tile_row[tile] * group; packed < plan.tile_row[tile + 1] * group; ++packed) {
      EXPECT(segments_of[packed] == expected);
    }
  }
}

TEST(work_list_covers_everything_once) {
  std::mt19937 random(5);
  for (int round = 0; round < 400; ++round) {
    const int group = std::vector<int>{1, 2, 3, 4, 5, 8, 16, 71}[random() % 8];
    WorkInput input;
    input.packed_rows = std::vector<int>{16, 32, 64}[random() % 3];
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
  // 264 blocks for 8 heads: 32 segments of 256 entries each can have one.
  EXPECT(reinterpret_cast<const WorkHeader*>(work)->num_items == 32);
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
