#include "cpu/advance.h"

#include <algorithm>

namespace apar::cpu {
namespace {

// ---- phase 1: transition ----

void transition(const Forest& forest, const int32_t* sampled) {
  for (int32_t row = 0; row < forest.header->num_rows; ++row) {
    const int32_t slot = forest.row_slot[row];
    if (slot < 0) continue;  // its branch was cancelled
    forest.has_row[slot] = 0;
    const int32_t token = sampled[row];
    const Outcome outcome = token_outcome(forest.config, token, forest.row_may_fork[row] != 0,
                                          forest.row_position[row] + 1, forest.limit[slot]);
    if (outcome != Outcome::kCancelled) forest.last_token[slot] = token;
    if (outcome == Outcome::kFork) forest.fork_pending[slot] = 1;
    if (ends_branch(outcome)) end_branch(forest, slot, end_reason(outcome));
  }
}

// ---- phase 2: release ----

// Trims a stream to its first `pages` pages.
void drop_pages(const Forest& forest, int32_t slot, int32_t pages) {
  int32_t* table = forest.page_table + forest.page_row(slot);
  for (int32_t i = pages; i < forest.num_pages[slot]; ++i) {
    forest.free_pages[forest.header->num_free_pages++] = table[i];
    table[i] = -1;
  }
  forest.num_pages[slot] = std::min(forest.num_pages[slot], pages);
}

void free_slot(const Forest& forest, int32_t slot) {
  drop_pages(forest, slot, 0);
  forest.state[slot] = kFree;
  forest.free_slots[forest.header->num_free_slots++] = slot;
}

// Notes the longest prefix of every stream that an unfinished branch reads from its context, and who reads it last.
void find_readers(const Forest& forest) {
  const ForestHeader& header = *forest.header;
  const auto forget = [&](int32_t slot) {
    forest.read_end[slot] = 0;
    forest.last_reader[slot] = -1;
  };
  for (int32_t i = 0; i < header.num_order; ++i) forget(forest.order[i]);
  for (int32_t i = 0; i < header.num_shared; ++i) forget(forest.shared[i]);
  for (int32_t i = 0; i < header.num_order; ++i) {
    const int32_t slot = forest.order[i];
    if (forest.state[slot] != kLive) continue;
    forest.kept_pages[slot] = 0;
    forest.kept_slots[slot] = 0;
    const int64_t context = forest.context_row(slot);
    for (int64_t c = context; c < context + forest.num_context[slot]; ++c) {
      const int32_t stream = forest.context_stream[c];
      forest.read_end[stream] = std::max(forest.read_end[stream], forest.context_end[c]);
      forest.last_reader[stream] = slot;
    }
  }
}

// ---- phase 3 and 4: grants and rows ----

// What feeding and forking change.
void store_branch(const Forest& forest, int32_t slot, const Branch& branch) {
  forest.num_children[slot] = branch.num_children;
  forest.length[slot] = branch.length;
  forest.num_pages[slot] = branch.num_pages;
  forest.kept_pages[slot] = branch.kept_pages;
  forest.kept_slots[slot] = branch.kept_slots;
}

// Writes a child that has just been opened, and the event.
void add_child(const Forest& forest, int32_t slot, const Branch& child, int32_t parent_slot, const Branch& parent) {
  ForestHeader& header = *forest.header;
  int32_t* event = forest.opened + int64_t{header.num_opened++} * kOpenedColumns;
  event[0] = slot;
  event[1] = header.next_branch_id;
  event[2] = forest.branch_id[parent_slot];
  event[3] = forest.request[parent_slot];
  event[4] = last_position(parent);
  event[5] = parent.num_children - 1;

  forest.state[slot] = kLive;
  forest.parent[slot] = parent_slot;
  forest.branch_id[slot] = header.next_branch_id++;
  forest.request[slot] = forest.request[parent_slot];
  forest.depth[slot] = child.depth;
  forest.first_position[slot] = child.first_position;
  forest.limit[slot] = child.limit;
  forest.last_token[slot] = forest.config.child_token;
  forest.fork_pending[slot] = 0;
  forest.has_row[slot] = 0;
  const int32_t contexts = forest.num_context[parent_slot];
  const int64_t from = forest.context_row(parent_slot), to = forest.context_row(slot);
  for (int32_t i = 0; i < contexts; ++i) {
    forest.context_stream[to + i] = forest.context_stream[from + i];
    forest.context_begin[to + i] = forest.context_begin[from + i];
    forest.context_end[to + i] = forest.context_end[from + i];
  }
  forest.context_stream[to + contexts] = parent_slot;
  forest.context_begin[to + contexts] = 0;
  forest.context_end[to + contexts] = parent.length;
  forest.num_context[slot] = contexts + 1;
  ++header.num_live;
}

// One pass over the branches in reading order that decides who is fed in the next step.
class Scheduler {
 public:
  Scheduler(const Forest& forest, int32_t row_limit)
      : forest_(forest),
        header_(*forest.header),
        max_rows_(std::min(row_limit, forest.config.max_rows)),
        pages_{.free = header_.num_free_pages},
        slots_{.free = header_.num_free_slots} {}

  void run() {
    for (int32_t row = 0; row < header_.num_rows; ++row) {
      const int32_t slot = forest_.row_slot[row];
      if (slot >= 0) pending_rows_ += forest_.has_row[slot];
    }
    const bool rescheduled = pending_rows_ > 0;
    header_.num_rows = 0;
    header_.num_ranges = 0;
    for (int32_t i = 0; i < header_.num_order; ++i) {
      const int32_t slot = forest_.order[i];
      if (i == 0 || forest_.request[slot] != request_) enter_request(i, rescheduled);
      if (forest_.state[slot] == kLive) visit(slot);
      forest_.next_order[num_order_++] = slot;
    }
    std::copy_n(forest_.next_order, num_order_, forest_.order);
    header_.num_order = num_order_;
  }

 private:
  // Branches of one request are neighbours in the order.
  void enter_request(int32_t begin, bool rescheduled) {
    request_ = forest_.request[forest_.order[begin]];
    rank_ = 0;
    pending_in_request_ = 0;
    if (!rescheduled) return;
    for (int32_t i = begin; i < header_.num_order && forest_.request[forest_.order[i]] == request_; ++i) {
      pending_in_request_ += forest_.has_row[forest_.order[i]];
    }
  }

  // Rows that were granted before and are not run yet keep their places, those behind included.
  bool has_place(int32_t more_rows) const {
    return rank_ + pending_in_request_ + more_rows < forest_.config.max_live_branches &&
           header_.num_rows + pending_rows_ + more_rows < max_rows_;
  }

  void visit(int32_t slot) {
    Branch branch = load_branch(forest_, slot);
    if (forest_.has_row[slot]) {
      --pending_rows_;
      --pending_in_request_;
    } else if (has_place(0)) {
      feed_or_wait(slot, branch);
    }
    go_past(slot, branch);
  }

  // Feeds last_token, if the bank allows; with a pending fork that opens the child.
  void feed_or_wait(int32_t slot, Branch& branch) {
    const bool page = needs_page(forest_, branch), fork = forest_.fork_pending[slot] != 0;
    if ((page && !pages_.may_take(1)) || (fork && !slots_.may_take(1))) return;
    grant_row(slot, branch, page);
    if (fork) {
      slots_.take(1);
      const int32_t child_slot = take_slot(forest_);
      Branch child = open_child(forest_, branch);
      add_child(forest_, child_slot, child, slot, branch);
      forest_.fork_pending[slot] = 0;
      forest_.next_order[num_order_++] = child_slot;
      if (has_place(1) && pages_.may_take(1)) grant_row(child_slot, child, true);
      store_branch(forest_, child_slot, child);
      go_past(child_slot, child);
    }
    store_branch(forest_, slot, branch);
  }

  void grant_row(int32_t slot, Branch& branch, bool page) {
    if (page) {
      pages_.take(1);
      forest_.page_table[forest_.page_row(slot) + branch.num_pages] = take_page(forest_);
    }
    feed(branch, page);
    forest_.has_row[slot] = 1;
  }

  void go_past(int32_t slot, const Branch& branch) {
    ++rank_;
    if (forest_.has_row[slot]) write_row(slot, branch);
    const Amount need = need_of(forest_, branch), gives = returned_by(forest_, branch);
    pages_.pass(need.pages, gives.pages);
    slots_.pass(need.slots, gives.slots);
  }

  void write_row(int32_t slot, const Branch& branch) {
    const int32_t row = header_.num_rows++, entry = branch.length - 1, token = forest_.last_token[slot];
    const int32_t position = last_position(branch);
    forest_.row_slot[row] = slot;
    forest_.row_token[row] = token;
    forest_.row_position[row] = position;
    const int32_t page = forest_.page_table[forest_.page_row(slot) + (entry >> forest_.page_shift)];
    forest_.row_kv_slot[row] = kv_slot_in(forest_, page, entry);
    forest_.row_may_fork[row] =
        may_fork(forest_.config, token, branch.depth, branch.num_children, position, branch.limit);
    int32_t range = header_.num_ranges;
    forest_.row_indptr[row] = range;
    const int64_t context = forest_.context_row(slot);
    for (int64_t c = context; c < context + forest_.num_context[slot]; ++c, ++range) {
      forest_.range_stream[range] = forest_.context_stream[c];
      forest_.range_begin[range] = forest_.context_begin[c];
      forest_.range_end[range] = forest_.context_end[c];
    }
    forest_.range_stream[range] = slot;
    forest_.range_begin[range] = 0;
    forest_.range_end[range] = branch.length;
    header_.num_ranges = range + 1;
  }

  const Forest& forest_;
  ForestHeader& header_;
  const int32_t max_rows_;
  Bank pages_;
  Bank slots_;
  int32_t request_ = -1;
  int32_t rank_ = 0;
  int32_t num_order_ = 0;
  int32_t pending_rows_ = 0;
  int32_t pending_in_request_ = 0;
};

// Rows and ranges behind the used ones are padding: they write nothing and read nothing.
void write_padding(const Forest& forest, int32_t old_rows, int32_t old_ranges) {
  const int32_t rows = forest.header->num_rows, ranges = forest.header->num_ranges;
  for (int32_t row = rows; row < old_rows; ++row) {
    forest.row_slot[row] = -1;
    forest.row_token[row] = 0;
    forest.row_position[row] = 0;
    forest.row_kv_slot[row] = -1;
    forest.row_may_fork[row] = 0;
  }
  std::fill(forest.row_indptr + rows, forest.row_indptr + forest.config.max_rows + 1, ranges);
  for (int32_t range = ranges; range < old_ranges; ++range) {
    forest.range_stream[range] = 0;
    forest.range_begin[range] = 0;
    forest.range_end[range] = 0;
  }
}

void make_step(const Forest& forest, int32_t row_limit) {
  const int32_t old_rows = forest.header->num_rows, old_ranges = forest.header->num_ranges;
  if (forest.header->release_due) release(forest);
  Scheduler(forest, row_limit).run();
  write_padding(forest, old_rows, old_ranges);
  write_plan(step_plan_input(forest, forest.header->num_rows, forest.header->num_ranges), forest.plan_schedule);
}

}  // namespace

int64_t find_bad_token(const Forest& forest, const int32_t* sampled) {
  for (int32_t row = 0; row < forest.header->num_rows; ++row) {
    if (sampled[row] < kEndBranch) return row;
  }
  return -1;
}

void advance(const Forest& forest, const int32_t* sampled, int32_t row_limit) {
  clear_events(forest);
  transition(forest, sampled);
  make_step(forest, row_limit);
}

void schedule(const Forest& forest) {
  clear_events(forest);
  make_step(forest, forest.config.max_rows);
}

void clear_events(const Forest& forest) {
  forest.header->num_opened = 0;
  forest.header->num_ended = 0;
  forest.header->num_done = 0;
}

void end_branch(const Forest& forest, int32_t slot, EndReason reason) {
  ForestHeader& header = *forest.header;
  int32_t* event = forest.ended + int64_t{header.num_ended++} * kEndedColumns;
  event[0] = slot;
  event[1] = forest.branch_id[slot];
  event[2] = forest.request[slot];
  event[3] = reason;
  event[4] = forest.length[slot];
  forest.state[slot] = kFinished;
  forest.fork_pending[slot] = 0;
  forest.has_row[slot] = 0;
  --header.num_live;
  header.release_due = 1;
}

void release(const Forest& forest) {
  ForestHeader& header = *forest.header;
  find_readers(forest);
  int32_t kept = 0, request = -1;
  bool request_runs = true;
  for (int32_t i = 0; i < header.num_order; ++i) {
    const int32_t slot = forest.order[i];
    if (forest.request[slot] != request) {
      if (!request_runs) forest.done[header.num_done++] = request;
      request = forest.request[slot];
      request_runs = false;
    }
    request_runs |= forest.state[slot] == kLive;
    if (forest.state[slot] == kFinished) {
      int32_t reader = forest.last_reader[slot];
      if (is_kept_for_parent(forest, slot)) {
        reader = forest.parent[slot];
      } else {
        const int32_t entries = forest.read_end[slot];
        if (entries == 0) {
          free_slot(forest, slot);
          continue;
        }
        forest.length[slot] = std::min(forest.length[slot], entries);
        drop_pages(forest, slot, pages_for(forest, entries));
      }
      forest.kept_pages[reader] += forest.num_pages[slot];
      forest.kept_slots[reader] += 1;
    } else if (is_kept_for_parent(forest, slot)) {
      const Amount amount = kept_by_parent(forest, forest.first_position[slot], forest.limit[slot]);
      forest.kept_pages[forest.parent[slot]] += static_cast<int32_t>(amount.pages);
      forest.kept_slots[forest.parent[slot]] += static_cast<int32_t>(amount.slots);
    }
    forest.order[kept++] = slot;
  }
  if (!request_runs) forest.done[header.num_done++] = request;
  header.num_order = kept;

  kept = 0;
  for (int32_t i = 0; i < header.num_shared; ++i) {
    const int32_t slot = forest.shared[i];
    if (forest.read_end[slot] == 0 && !forest.pinned[slot]) {
      free_slot(forest, slot);
    } else {
      forest.shared[kept++] = slot;
    }
  }
  header.num_shared = kept;
  header.release_due = 0;
}

int32_t take_slot(const Forest& forest) { return forest.free_slots[--forest.header->num_free_slots]; }

int32_t take_page(const Forest& forest) { return forest.free_pages[--forest.header->num_free_pages]; }

void add_page(const Forest& forest, int32_t slot) {
  forest.page_table[forest.page_row(slot) + forest.num_pages[slot]++] = take_page(forest);
}

Banks bank_all(const Forest& forest) {
  Banks banks{.pages = {.free = forest.header->num_free_pages}, .slots = {.free = forest.header->num_free_slots}};
  for (int32_t i = 0; i < forest.header->num_order; ++i) {
    const int32_t slot = forest.order[i];
    if (forest.state[slot] != kLive) continue;
    const Branch branch = load_branch(forest, slot);
    const Amount need = need_of(forest, branch), gives = returned_by(forest, branch);
    banks.pages.pass(need.pages, gives.pages);
    banks.slots.pass(need.slots, gives.slots);
  }
  return banks;
}

}  // namespace apar::cpu
