#include "cpu/forest.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "cpu/advance.h"

namespace apar::cpu {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

template <class... Parts>
void expect(bool holds, const char* op, const Parts&... parts) {
  if (holds) [[likely]]
    return;
  std::ostringstream text;
  text << op << ": ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

void expect_range(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  expect(value >= low && value <= high, op, name, " is ", value, ", expected ", low, " to ", high);
}

const char* state_name(int32_t state) {
  switch (state) {
    case kFree:
      return "free";
    case kLive:
      return "an unfinished branch";
    case kFinished:
      return "a finished branch";
    default:
      return "a shared stream";
  }
}

void expect_state(const char* op, const Forest& forest, const char* name, int64_t slot, SlotState state) {
  expect_range(op, name, slot, 0, forest.config.num_slots - 1);
  expect(forest.state[slot] == state, op, name, " is slot ", slot, ", which is ", state_name(forest.state[slot]),
         ", expected ", state_name(state));
}

// A slot with everything set to what a stream without a branch has.
int32_t open_slot(const Forest& forest, SlotState state, int32_t length) {
  const int32_t slot = take_slot(forest);
  forest.state[slot] = state;
  forest.parent[slot] = -1;
  forest.branch_id[slot] = -1;
  forest.request[slot] = -1;
  forest.depth[slot] = 0;
  forest.num_children[slot] = 0;
  forest.length[slot] = length;
  forest.first_position[slot] = 0;
  forest.limit[slot] = 0;
  forest.last_token[slot] = 0;
  forest.fork_pending[slot] = 0;
  forest.has_row[slot] = 0;
  forest.pinned[slot] = 0;
  forest.num_context[slot] = 0;
  forest.kept_pages[slot] = 0;
  forest.kept_slots[slot] = 0;
  for (int32_t page = pages_for(forest, length); page > 0; --page) add_page(forest, slot);
  return slot;
}

}  // namespace

void check_config(const char* op, const ForestConfig& config) {
  expect_range(op, "num_slots", config.num_slots, 1, 1 << 24);
  expect_range(op, "num_pages", config.num_pages, 1, kMaxInt32);
  expect(config.page_size >= 8 && config.page_size <= 128 && std::has_single_bit(uint32_t(config.page_size)), op,
         "page_size is ", config.page_size, ", expected one of 8, 16, 32, 64, 128");
  expect(int64_t{config.num_pages} * config.page_size <= kMaxInt32, op, "num_pages is ", config.num_pages,
         ", expected at most ", kMaxInt32 / config.page_size, " pages of ", config.page_size);
  expect_range(op, "max_pages", config.max_pages, 1, kMaxInt32 / config.page_size);
  expect_range(op, "max_rows", config.max_rows, 1, 1 << 24);
  expect_range(op, "num_kv_heads", config.num_kv_heads, 1, kMaxQueryHeads);
  expect_range(op, "group_size", config.group_size, 1, kMaxQueryHeads / config.num_kv_heads);
  expect_range(op, "fork_token", config.fork_token, -1, kMaxInt32);
  expect_range(op, "child_token", config.child_token, -1, kMaxInt32);
  expect((config.fork_token < 0) == (config.child_token < 0), op, "child_token is ", config.child_token,
         ", expected -1 exactly where fork_token is -1, which is ", config.fork_token);
  expect(config.fork_token < 0 || config.fork_token != config.child_token, op, "child_token is ", config.child_token,
         ", expected another one than fork_token");
  expect_range(op, "max_depth", config.max_depth, 1, config.fork_token < 0 ? 1 : 64);
  expect_range(op, "max_children", config.max_children, 1, 1 << 20);
  expect_range(op, "max_ranges", config.max_ranges, std::max(1, config.max_depth - 1), 1 << 16);
  expect_range(op, "max_live_branches", config.max_live_branches, 1, kMaxInt32);
  expect_range(op, "keep_finished", config.keep_finished, 0, 1);
  expect_range(op, "num_stop_tokens", config.num_stop_tokens, 0, kMaxStopTokens);
  for (int32_t i = 0; i < config.num_stop_tokens; ++i) {
    const int32_t token = config.stop_tokens[i];
    expect_range(op, "stop_tokens", token, 0, kMaxInt32);
    expect(token != config.fork_token && token != config.child_token, op, "stop_tokens holds ", token,
           ", expected neither fork_token nor child_token");
  }
  const int64_t levels = config.max_depth - 1;
  const int64_t needed = 1 + (config.keep_finished ? levels * config.max_children : levels);
  expect(config.num_slots >= needed, op, "num_slots is ", config.num_slots, ", expected at least ", needed,
         ", what one request may need with max_depth ", config.max_depth,
         config.keep_finished ? " and max_children that stay" : "");
  const int64_t numbers = (int64_t{config.max_rows} + config.num_slots) * (config.max_ranges + 1) +
                          int64_t{config.num_slots} * config.max_pages + config.num_pages;
  expect(numbers < kMaxInt32 / 32 && forest_size(config) <= kMaxInt32, op, "the forest would take ", numbers,
         " numbers for its tables, expected at most ", kMaxInt32 / 32);
}

Forest open_forest(const char* op, int32_t* data, int64_t size) {
  const auto* header = reinterpret_cast<const ForestHeader*>(data);
  expect(size >= kForestHeaderSize && header->magic == kForestMagic && header->version == kForestVersion, op,
         "forest is no forest of this version, expected the tensor of a Forest");
  const int64_t expected = forest_size(header->config);
  expect(header->total_size == size && expected == size, op, "forest has ", size, " numbers, expected ", expected,
         " by its header");
  return forest_view(data, header->config);
}

void forest_reset(int32_t* data, int64_t size) {
  const char* op = "forest_reset";
  expect(size >= kForestHeaderSize, op, "forest has ", size, " numbers, expected at least ", kForestHeaderSize);
  const ForestConfig config = reinterpret_cast<const ForestHeader*>(data)->config;
  check_config(op, config);
  const int64_t expected = forest_size(config);
  expect(size == expected, op, "forest has ", size, " numbers, expected ", expected, " by its configuration");

  std::fill(data, data + size, 0);
  ForestHeader& header = *reinterpret_cast<ForestHeader*>(data);
  header.magic = kForestMagic;
  header.version = kForestVersion;
  header.total_size = static_cast<int32_t>(size);
  header.config = config;
  const Forest forest = forest_view(data, config);
  // The tops of both stacks are their last entries: ids are handed out from 0 upwards.
  header.num_free_pages = config.num_pages;
  for (int32_t i = 0; i < config.num_pages; ++i) forest.free_pages[i] = config.num_pages - 1 - i;
  header.num_free_slots = config.num_slots;
  for (int32_t i = 0; i < config.num_slots; ++i) forest.free_slots[i] = config.num_slots - 1 - i;
  std::fill_n(forest.page_table, int64_t{config.num_slots} * config.max_pages, -1);
  std::fill_n(forest.row_slot, config.max_rows, -1);
  std::fill_n(forest.row_kv_slot, config.max_rows, -1);
  schedule(forest);
}

int32_t forest_admit(const Forest& forest, int64_t request, int64_t prompt_length, int64_t limit, int64_t last_token,
                     int64_t shared_slot) {
  const char* op = "forest_admit";
  const ForestConfig& config = forest.config;
  expect_range(op, "request", request, 0, kMaxInt32);
  expect_range(op, "prompt_length", prompt_length, 1, kMaxInt32 - 1);
  expect_range(op, "limit", limit, prompt_length + 1, kMaxInt32);
  expect_range(op, "last_token", last_token, 0, kMaxInt32);
  int64_t shared_length = 0;
  if (shared_slot != -1) {
    expect_state(op, forest, "shared_slot", shared_slot, kShared);
    shared_length = forest.length[shared_slot];
    expect(prompt_length > shared_length, op, "prompt_length is ", prompt_length,
           ", expected more than the shared stream's ", shared_length);
    expect(config.max_ranges >= config.max_depth, op, "max_ranges is ", config.max_ranges, ", expected at least ",
           config.max_depth, " for a shared stream and max_depth ", config.max_depth);
  }
  for (int32_t i = 0; i < forest.header->num_order; ++i) {
    expect(forest.request[forest.order[i]] != request, op, "request is ", request, ", which is already running");
  }
  const int64_t most_entries = limit - 1 - shared_length;
  expect(most_entries <= int64_t{config.max_pages} * config.page_size, op, "limit is ", limit,
         ", which lets a stream grow to ", most_entries,
         " entries, expected at most max_pages * page_size = ", int64_t{config.max_pages} * config.page_size);
  const Amount need = need_of(config, pages_for(forest, static_cast<int32_t>(most_entries)), 0, 0, 0);
  expect(need.pages <= config.num_pages, op, "the request may need ", need.pages,
         " pages, expected at most num_pages = ", config.num_pages);

  const auto length = static_cast<int32_t>(prompt_length - 1 - shared_length);
  const int32_t pages = pages_for(forest, length);
  const Banks banks = bank_all(forest);
  const bool room = banks.pages.may_take(pages) && banks.slots.may_take(1) &&
                    need.pages <= banks.pages.free + banks.pages.returned &&
                    need.slots + 1 <= banks.slots.free + banks.slots.returned;
  if (!room) {
    expect(forest.header->num_live > 0, op, "the request may need ", need.pages, " pages and ", need.slots + 1,
           " slots, but nothing is running and shared streams leave ", banks.pages.free, " pages and ",
           banks.slots.free, " slots");
    return -1;
  }
  const int32_t slot = open_slot(forest, kLive, length);
  ForestHeader& header = *forest.header;
  forest.branch_id[slot] = header.next_branch_id++;
  forest.request[slot] = static_cast<int32_t>(request);
  forest.first_position[slot] = static_cast<int32_t>(shared_length);
  forest.limit[slot] = static_cast<int32_t>(limit);
  forest.last_token[slot] = static_cast<int32_t>(last_token);
  if (shared_slot != -1) {
    const int64_t context = forest.context_row(slot);
    forest.context_stream[context] = static_cast<int32_t>(shared_slot);
    forest.context_begin[context] = 0;
    forest.context_end[context] = static_cast<int32_t>(shared_length);
    forest.num_context[slot] = 1;
  }
  forest.order[header.num_order++] = slot;
  ++header.num_live;
  return slot;
}

int32_t forest_open_shared(const Forest& forest, int64_t length) {
  const char* op = "forest_open_shared";
  const int64_t most = std::min<int64_t>(forest.config.max_pages, forest.config.num_pages) * forest.config.page_size;
  expect_range(op, "length", length, 1, most);
  const auto entries = static_cast<int32_t>(length);
  const Banks banks = bank_all(forest);
  if (!banks.pages.may_take(pages_for(forest, entries)) || !banks.slots.may_take(1)) return -1;
  const int32_t slot = open_slot(forest, kShared, entries);
  forest.pinned[slot] = 1;
  forest.shared[forest.header->num_shared++] = slot;
  return slot;
}

void forest_close_shared(const Forest& forest, int64_t slot) {
  expect_state("forest_close_shared", forest, "slot", slot, kShared);
  forest.pinned[slot] = 0;
  release(forest);
}

void forest_join(const Forest& forest, int64_t parent, const int32_t* children, int64_t num_children) {
  const char* op = "forest_join";
  const ForestConfig& config = forest.config;
  expect(config.keep_finished != 0, op, "keep_finished is 0, expected a forest that keeps finished children");
  expect_state(op, forest, "parent", parent, kLive);
  const int64_t context = forest.context_row(static_cast<int32_t>(parent));
  const int64_t joined = forest.num_context[parent] + num_children;
  const int64_t levels = config.max_depth - 1 - forest.depth[parent];
  expect(joined + levels <= config.max_ranges, op, "the context would have ", joined, " ranges and its descendants ",
         levels, " more, expected at most max_ranges = ", config.max_ranges);
  for (int64_t i = 0; i < num_children; ++i) {
    expect_state(op, forest, "children", children[i], kFinished);
    expect(forest.parent[children[i]] == parent, op, "children holds slot ", children[i], ", whose parent is slot ",
           forest.parent[children[i]], ", expected ", parent);
    const bool before = std::find(children, children + i, children[i]) != children + i;
    const int32_t* streams = forest.context_stream + context;
    const bool already =
        std::find(streams, streams + forest.num_context[parent], children[i]) != streams + forest.num_context[parent];
    expect(!before && !already, op, "children holds slot ", children[i], ", which is joined already");
  }
  for (int64_t i = 0; i < num_children; ++i) {
    const int64_t at = context + forest.num_context[parent]++;
    forest.context_stream[at] = children[i];
    forest.context_begin[at] = 0;
    forest.context_end[at] = forest.length[children[i]];
  }
}

int32_t forest_cancel(const Forest& forest, int64_t request) {
  expect_range("forest_cancel", "request", request, 0, kMaxInt32);
  clear_events(forest);
  // Rows of the step at hand write and sample nothing any more.
  for (int32_t row = 0; row < forest.header->num_rows; ++row) {
    const int32_t slot = forest.row_slot[row];
    if (slot < 0 || forest.request[slot] != request) continue;
    forest.row_slot[row] = -1;
    forest.row_kv_slot[row] = -1;
    forest.row_may_fork[row] = 0;
  }
  for (int32_t i = 0; i < forest.header->num_order; ++i) {
    const int32_t slot = forest.order[i];
    if (forest.request[slot] == request && forest.state[slot] == kLive) end_branch(forest, slot, kEndCancelled);
  }
  const int32_t cancelled = forest.header->num_ended;
  if (cancelled > 0) release(forest);
  return cancelled;
}

void window_begins(const WindowInput& input, int32_t* begins) {
  for (int64_t row = 0; row < input.rows; ++row) {
    for (int32_t i = input.row_indptr[row]; i < input.row_indptr[row + 1]; ++i) {
      begins[i] = window_begin(input.row_position[row], input.window, input.first_position[input.range_stream[i]],
                               input.range_begin[i], input.range_end[i]);
    }
  }
}

}  // namespace apar::cpu
