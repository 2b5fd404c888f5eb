// advance: one block makes a step of all branches, phase by phase as cpu/advance.cpp does, each phase by all its
// threads. The rules are those of core/forest_rules.h.
//
// Grid: one block. Threads stand for rows in the transition and for places in the reading order afterwards; where there
// are more of these than threads, the block goes over them in portions, left to right, and carries the sums along.
// Shared memory: room for two scans, then the work space of the plan, as far as it fits.
//
// State that all threads keep alike in registers: the counters of the header. What a phase writes for another thread to
// read is followed by a barrier, which is always a scan's or a line of its own.
#pragma once

#include <cstddef>

#include "core/forest_rules.h"
#include "cuda/make_plan/plan.cuh"
#include "cuda/numbers.cuh"
#include "cuda/scan.cuh"

namespace apar::cuda {

struct AdvanceArguments {
  ForestOf<GlobalInts> forest;
  const int32_t* sampled;
  int32_t* scratch;
  int32_t num_sampled;
  int32_t total_size;   // of the forest
  int32_t max_rows;     // of the next step
  int32_t shared_ints;  // for the plan
  DeviceReport* report;
};

namespace advance_detail {

constexpr int32_t kNever = 0x7fffffff;

// Rank within the request: a sum that starts anew where a request begins.
struct Rank {
  int32_t begins = 0, count = 0;
  static APAR_DEVICE Rank combine(const Rank& left, const Rank& right) {
    return {left.begins | right.begins, right.begins != 0 ? right.count : left.count + right.count};
  }
};

// What a run of branches does to a Bank: adds to `returned`, and has met this `lowest`, from where `returned` was 0. In
// a safe forest all of it is of the size of the pool.
constexpr int32_t kMost = 1 << 30;
struct Passed {
  int32_t returned = 0, lowest = kMost;
  APAR_DEVICE void pass(int64_t need, int64_t gives) {
    const int32_t left = returned - static_cast<int32_t>(need < kMost ? need : kMost);
    lowest = left < lowest ? left : lowest;
    returned += static_cast<int32_t>(gives);
  }
  static APAR_DEVICE Passed combine(const Passed& left, const Passed& right) {
    const int32_t low = left.returned + right.lowest;
    return {left.returned + right.returned, low < left.lowest ? low : left.lowest};
  }
};

// What was granted and passed so far.
APAR_DEVICE int32_t at_most_zero(int32_t lowest) { return lowest < 0 ? lowest : 0; }
struct Granted {
  int32_t pages = 0, opened = 0, ranges = 0;
  Passed page_bank, slot_bank;
  static APAR_DEVICE Granted combine(const Granted& left, const Granted& right) {
    return {left.pages + right.pages, left.opened + right.opened, left.ranges + right.ranges,
            Passed::combine(left.page_bank, right.page_bank), Passed::combine(left.slot_bank, right.slot_bank)};
  }
};

// The place of the first refusal; neutral: none.
struct First {
  int32_t of = kNever;
  static APAR_DEVICE First combine(const First& left, const First& right) {
    return {left.of < right.of ? left.of : right.of};
  }
};

// Behind which branches some kind of asker is refused, in the order of asking: a branch asks at 2 i, its child at 2 i
// + 1. Once refused, always refused (docs/forest.md).
struct Refusals {
  int32_t pages = kNever, slots = kNever;
};

}  // namespace advance_detail

class Advance {
 public:
  APAR_DEVICE Advance(const AdvanceArguments& arguments, int32_t* shared)
      : arguments_(arguments),
        forest_(arguments.forest),
        config_(arguments.forest.config),
        header_{reinterpret_cast<int32_t*>(arguments.forest.header)},
        scan_(shared),
        shared_(shared + BlockScan::kSharedInts),
        thread_(thread_index()),
        threads_(block_size()) {}

  APAR_DEVICE void run() {
    if (!load_header()) return;
    transition();
    if (release_due_) release();
    schedule();
    synchronize_block();
    finish_order();
    write_padding();
    write_header();
    synchronize_block();
    write_plan();
  }

 private:
  using Granted = advance_detail::Granted;
  using Refusals = advance_detail::Refusals;

  // ---- the header

#define APAR_COUNTER_INDEX(name) (offsetof(ForestHeader, name) / sizeof(int32_t))

  // False: this is not what the launch was made for.
  APAR_DEVICE bool load_header() {
    num_free_pages_ = header_[APAR_COUNTER_INDEX(num_free_pages)];
    num_free_slots_ = header_[APAR_COUNTER_INDEX(num_free_slots)];
    num_order_ = header_[APAR_COUNTER_INDEX(num_order)];
    num_live_ = header_[APAR_COUNTER_INDEX(num_live)];
    num_shared_ = header_[APAR_COUNTER_INDEX(num_shared)];
    next_branch_id_ = header_[APAR_COUNTER_INDEX(next_branch_id)];
    release_due_ = header_[APAR_COUNTER_INDEX(release_due)] != 0;
    old_rows_ = header_[APAR_COUNTER_INDEX(num_rows)];
    old_ranges_ = header_[APAR_COUNTER_INDEX(num_ranges)];
    if (old_rows_ > arguments_.num_sampled && thread_ == 0) {
      report(arguments_.report, DeviceFault::kSampledSize, 0, arguments_.num_sampled, old_rows_);
    }
    return !any_in_block(!is_expected_forest() || old_rows_ > arguments_.num_sampled);
  }

  // As far as this thread has looked.
  APAR_DEVICE bool is_expected_forest() {
    constexpr int32_t kFirst = offsetof(ForestHeader, config) / sizeof(int32_t);
    constexpr int32_t kSize = sizeof(ForestConfig) / sizeof(int32_t);
    bool expected = true;
    for (int32_t i = thread_; i < kFirst + kSize; i += threads_) {
      const int32_t wanted = i == 0       ? kForestMagic
                             : i == 1     ? kForestVersion
                             : i < kFirst ? arguments_.total_size
                                          : reinterpret_cast<const int32_t*>(&config_)[i - kFirst];
      const int32_t found = header_[i];
      if (found != wanted) report(arguments_.report, DeviceFault::kForestHeader, i, found, wanted);
      expected = expected && found == wanted;
    }
    return expected;
  }

  APAR_DEVICE void write_header() {
    if (thread_ != 0) return;
    header_[APAR_COUNTER_INDEX(num_free_pages)] = num_free_pages_;
    header_[APAR_COUNTER_INDEX(num_free_slots)] = num_free_slots_;
    header_[APAR_COUNTER_INDEX(num_order)] = num_order_;
    header_[APAR_COUNTER_INDEX(num_live)] = num_live_;
    header_[APAR_COUNTER_INDEX(num_shared)] = num_shared_;
    header_[APAR_COUNTER_INDEX(next_branch_id)] = next_branch_id_;
    header_[APAR_COUNTER_INDEX(release_due)] = 0;
    header_[APAR_COUNTER_INDEX(num_rows)] = num_rows_;
    header_[APAR_COUNTER_INDEX(num_ranges)] = num_ranges_;
    header_[APAR_COUNTER_INDEX(num_opened)] = num_opened_;
    header_[APAR_COUNTER_INDEX(num_ended)] = num_ended_;
    header_[APAR_COUNTER_INDEX(num_done)] = num_done_;
  }

#undef APAR_COUNTER_INDEX

  // ---- phase 1: transition, a thread per row

  APAR_DEVICE void transition() {
    Sums<1> ended_before;
    for (int32_t first = 0; first < old_rows_; first += threads_) {
      const int32_t row = first + thread_;
      const int32_t slot = row < old_rows_ ? static_cast<int32_t>(forest_.row_slot[row]) : -1;
      bool ends = false;
      EndReason reason = kEndStop;
      if (slot >= 0) {
        int32_t token = load_constant(arguments_.sampled + row);
        if (token < kEndBranch) {
          report(arguments_.report, DeviceFault::kSampledToken, row, token, 0);
          token = kEndBranch;
        }
        const Outcome outcome = token_outcome(config_, token, forest_.row_may_fork[row] != 0,
                                              forest_.row_position[row] + 1, forest_.limit[slot]);
        ends = ends_branch(outcome);
        reason = end_reason(outcome);
        forest_.has_row[slot] = 0;
        if (outcome != Outcome::kCancelled) forest_.last_token[slot] = token;
        if (outcome == Outcome::kFork || ends) forest_.fork_pending[slot] = ends ? 0 : 1;
        if (ends) forest_.state[slot] = kFinished;
      }
      Sums<1> mine;
      mine.of[0] = ends ? 1 : 0;
      const auto ended = scan_(mine, ended_before);
      ended_before = ended.total;
      if (ends) {
        const int64_t event = int64_t{ended.before.of[0]} * kEndedColumns;
        forest_.ended[event] = slot;
        forest_.ended[event + 1] = forest_.branch_id[slot];
        forest_.ended[event + 2] = forest_.request[slot];
        forest_.ended[event + 3] = reason;
        forest_.ended[event + 4] = forest_.length[slot];
      }
    }
    num_ended_ = ended_before.of[0];
    num_live_ -= num_ended_;
    release_due_ |= num_ended_ > 0;
  }

  // ---- phase 2: release, a thread per place in the order

  APAR_DEVICE void release() {
    find_readers();
    release_branches();
    release_shared();
  }

  APAR_DEVICE void find_readers() {
    const auto forget = [&](int32_t slot) {
      forest_.read_end[slot] = 0;
      forest_.last_reader[slot] = -1;
    };
    for (int32_t i = thread_; i < num_order_; i += threads_) {
      const int32_t slot = forest_.order[i];
      forget(slot);
      if (forest_.state[slot] != kLive) continue;
      forest_.kept_pages[slot] = 0;
      forest_.kept_slots[slot] = 0;
    }
    for (int32_t i = thread_; i < num_shared_; i += threads_) forget(forest_.shared[i]);
    synchronize_block();
    // last_reader holds places in the order at first: their maximum is the last.
    for (int32_t i = thread_; i < num_order_; i += threads_) {
      const int32_t slot = forest_.order[i];
      if (forest_.state[slot] != kLive) continue;
      const int64_t context = forest_.context_row(slot);
      const int32_t contexts = forest_.num_context[slot];
      for (int64_t c = context; c < context + contexts; ++c) {
        const int32_t stream = forest_.context_stream[c];
        atomic_max(forest_.read_end.pointer + stream, forest_.context_end[c]);
        atomic_max(forest_.last_reader.pointer + stream, i);
      }
    }
    synchronize_block();
    const auto name_reader = [&](int32_t slot) {
      const int32_t place = forest_.last_reader[slot];
      if (place >= 0) forest_.last_reader[slot] = forest_.order[place];
    };
    for (int32_t i = thread_; i < num_order_; i += threads_) name_reader(forest_.order[i]);
    for (int32_t i = thread_; i < num_shared_; i += threads_) name_reader(forest_.shared[i]);
  }

  // What becomes of a stream: pages behind `pages` go back, and its slot where it is not kept.
  struct Trim {
    int32_t slot = -1, pages = 0, dropped = 0;
    bool freed = false;
  };

  // Pushes the dropped pages of all streams of the warp, lanes side by side, at pages' places in the stack.
  APAR_DEVICE void drop_pages(const Trim& trim, int32_t place) {
    for (unsigned left = ballot(trim.dropped > 0); left != 0; left &= left - 1) {
      const int lane = 31 - count_leading_zeros(static_cast<int>(left & (~left + 1)));
      const int32_t slot = shuffle(trim.slot, lane), pages = shuffle(trim.pages, lane),
                    dropped = shuffle(trim.dropped, lane), to = shuffle(place, lane);
      const int64_t from = forest_.page_row(slot) + pages;
      for (int32_t i = lane_index(); i < dropped; i += kWarpSize) {
        forest_.free_pages[to + i] = forest_.page_table[from + i];
        forest_.page_table[from + i] = -1;
      }
    }
    if (trim.dropped > 0) forest_.num_pages[trim.slot] = trim.pages;
  }

  APAR_DEVICE void free_slot(const Trim& trim, int32_t place) {
    if (!trim.freed) return;
    forest_.state[trim.slot] = kFree;
    forest_.free_slots[place] = trim.slot;
  }

  APAR_DEVICE void release_branches() {
    Sums<3> sums_before;  // pages dropped, slots freed, streams kept
    sums_before.of[0] = num_free_pages_;
    sums_before.of[1] = num_free_slots_;
    Maxima<2> places_before;  // of unfinished branches, of the beginnings of requests
    Sums<1> done_before;
    for (int32_t first = 0; first < num_order_; first += threads_) {
      const int32_t i = first + thread_;
      const bool valid = i < num_order_;
      Trim trim;
      int32_t reader = -1, request = -1;
      Maxima<2> places;
      bool ends_request = false, live = false, kept_for_parent = false;
      if (valid) {
        const int32_t slot = forest_.order[i];
        trim.slot = slot;
        live = forest_.state[slot] == kLive;
        request = forest_.request[slot];
        const bool begins_request = i == 0 || forest_.request[forest_.order[i - 1]] != request;
        ends_request = i == num_order_ - 1 || forest_.request[forest_.order[i + 1]] != request;
        if (live) places.of[0] = i;
        if (begins_request) places.of[1] = i;
        kept_for_parent = is_kept_for_parent(forest_, slot);
        trim.pages = forest_.num_pages[slot];
        if (kept_for_parent) reader = forest_.parent[slot];
        if (!live && !kept_for_parent) {
          const int32_t entries = forest_.read_end[slot], pages = pages_for(forest_, entries);
          trim.freed = entries == 0;
          if (pages < trim.pages) {
            trim.dropped = trim.pages - pages;
            trim.pages = pages;
          }
          if (!trim.freed) {
            reader = forest_.last_reader[slot];
            if (entries < forest_.length[slot]) forest_.length[slot] = entries;
          }
        }
      }
      Sums<3> sums;
      sums.of[0] = trim.dropped;
      sums.of[1] = trim.freed ? 1 : 0;
      sums.of[2] = valid && !trim.freed ? 1 : 0;
      const auto summed = scan_(sums, sums_before);
      sums_before = summed.total;
      const auto found = scan_(places, places_before);
      places_before = found.total;
      Sums<1> done;
      done.of[0] = ends_request && found.with.of[0] < found.with.of[1] ? 1 : 0;
      const auto finished = scan_(done, done_before);
      done_before = finished.total;

      if (done.of[0] != 0) forest_.done[finished.before.of[0]] = request;
      drop_pages(trim, summed.before.of[0]);
      free_slot(trim, summed.before.of[1]);
      if (sums.of[2] != 0) forest_.order[summed.before.of[2]] = trim.slot;
      if (reader >= 0) {
        Amount kept = {trim.pages, 1};
        if (live) kept = kept_by_parent(forest_, forest_.first_position[trim.slot], forest_.limit[trim.slot]);
        atomic_add(forest_.kept_pages.pointer + reader, static_cast<int32_t>(kept.pages));
        atomic_add(forest_.kept_slots.pointer + reader, static_cast<int32_t>(kept.slots));
      }
      synchronize_block();
    }
    num_free_pages_ = sums_before.of[0];
    num_free_slots_ = sums_before.of[1];
    num_order_ = sums_before.of[2];
    num_done_ = done_before.of[0];
  }

  APAR_DEVICE void release_shared() {
    Sums<3> sums_before;
    sums_before.of[0] = num_free_pages_;
    sums_before.of[1] = num_free_slots_;
    for (int32_t first = 0; first < num_shared_; first += threads_) {
      const int32_t i = first + thread_;
      Trim trim;
      if (i < num_shared_) {
        trim.slot = forest_.shared[i];
        trim.freed = forest_.read_end[trim.slot] == 0 && forest_.pinned[trim.slot] == 0;
        if (trim.freed) trim.dropped = forest_.num_pages[trim.slot];
      }
      Sums<3> sums;
      sums.of[0] = trim.dropped;
      sums.of[1] = trim.freed ? 1 : 0;
      sums.of[2] = i < num_shared_ && !trim.freed ? 1 : 0;
      const auto summed = scan_(sums, sums_before);
      sums_before = summed.total;
      drop_pages(trim, summed.before.of[0]);
      free_slot(trim, summed.before.of[1]);
      if (sums.of[2] != 0) forest_.shared[summed.before.of[2]] = trim.slot;
    }
    num_free_pages_ = sums_before.of[0];
    num_free_slots_ = sums_before.of[1];
    num_shared_ = sums_before.of[2];
  }

  // ---- phase 3 and 4: grants and rows, a thread per place in the order

  // A branch as the schedule finds it, and what becomes of it.
  struct Visit {
    int32_t place = 0, slot = -1;
    bool live = false, forks = false, page = false, begins_request = false;
    int32_t contexts = 0;
    int32_t last_page = -1;  // where its next entry lies, if it needs no page
    Branch before{};         // as it is
    // What it gets if all that are before it get what they ask for.
    bool fed = false, opens = false, child_fed = false;
    int32_t row = 0;  // of the child, if that is fed, and else its own
    Branch branch{}, child{};
  };

  APAR_DEVICE Visit load_visit(int32_t place) {
    Visit visit;
    visit.place = place;
    if (place >= num_order_) return visit;
    const int32_t slot = forest_.order[place];
    visit.slot = slot;
    visit.live = forest_.state[slot] == kLive;
    visit.begins_request = place == 0 || forest_.request[forest_.order[place - 1]] != forest_.request[slot];
    if (!visit.live) return visit;
    visit.before = load_branch(forest_, slot);
    visit.forks = forest_.fork_pending[slot] != 0;
    visit.contexts = forest_.num_context[slot];
    visit.page = needs_page(forest_, visit.before);
    if (!visit.page) {
      visit.last_page = forest_.page_table[forest_.page_row(slot) + (visit.before.length >> forest_.page_shift)];
    }
    return visit;
  }

  // What the branches of this portion get if nobody is refused but by `refusals`; the first two scans of a round.
  APAR_DEVICE void decide(Visit& visit, const Refusals& refusals, advance_detail::Rank& rank, Sums<1>& rows) {
    const int32_t ask = 2 * visit.place;
    const bool willing =
        visit.live && !(visit.page && ask >= refusals.pages) && !(visit.forks && ask >= refusals.slots);
    advance_detail::Rank step{visit.begins_request ? 1 : 0, 0};
    if (visit.live) step.count = willing && visit.forks ? 2 : 1;
    const auto ranks = scan_(step, rank);
    rank = ranks.total;
    const int32_t mine = visit.begins_request ? 0 : ranks.before.count;
    const bool eligible = willing && mine < config_.max_live_branches;
    const bool child_eligible =
        eligible && visit.forks && mine + 1 < config_.max_live_branches && ask + 1 < refusals.pages;
    Sums<1> wanted;
    wanted.of[0] = (eligible ? 1 : 0) + (child_eligible ? 1 : 0);
    const auto rowed = scan_(wanted, rows);
    rows = rowed.total;
    visit.row = rowed.before.of[0];
    visit.fed = eligible && visit.row < arguments_.max_rows;
    visit.opens = visit.fed && visit.forks;
    visit.child_fed = visit.opens && child_eligible && visit.row + 1 < arguments_.max_rows;
  }

  // The numbers of the branch and its child behind the grants, and what they add to what was granted.
  APAR_DEVICE Granted grant(Visit& visit) {
    Granted granted;
    if (!visit.live) return granted;
    visit.branch = visit.before;
    const auto pass = [&](const Branch& branch) {
      const Amount need = need_of(forest_, branch), gives = returned_by(forest_, branch);
      granted.page_bank.pass(need.pages, gives.pages);
      granted.slot_bank.pass(need.slots, gives.slots);
    };
    if (visit.fed) {
      feed(visit.branch, visit.page);
      granted.pages += visit.page ? 1 : 0;
      granted.ranges += visit.contexts + 1;
    }
    if (visit.opens) {
      visit.child = open_child(forest_, visit.branch);
      granted.opened = 1;
      if (visit.child_fed) {
        feed(visit.child, true);
        granted.pages += 1;
        granted.ranges += visit.contexts + 2;
      }
      pass(visit.child);
    }
    pass(visit.branch);
    return granted;
  }

  // Where the bank refuses what was granted: as First.
  APAR_DEVICE advance_detail::First find_refusal(const Visit& visit, const Granted& before) {
    const int32_t pages = num_free_pages_ - before.pages + advance_detail::at_most_zero(before.page_bank.lowest);
    const int32_t slots = num_free_slots_ - before.opened + advance_detail::at_most_zero(before.slot_bank.lowest);
    if (visit.fed && visit.page && pages < 1) return {4 * visit.place};
    if (visit.opens && slots < 1) return {4 * visit.place + 1};
    if (visit.child_fed && pages - (visit.page ? 1 : 0) < 1) return {4 * visit.place + 2};
    return {};
  }

  APAR_DEVICE void schedule() {
    advance_detail::Rank rank;
    Sums<1> rows;
    Granted granted;
    Refusals refusals;
    for (int32_t first = 0; first < num_order_; first += threads_) {
      Visit visit = load_visit(first + thread_);
      for (;;) {
        advance_detail::Rank rank_behind = rank;
        Sums<1> rows_behind = rows;
        decide(visit, refusals, rank_behind, rows_behind);
        const auto sums = scan_(grant(visit), granted);
        const advance_detail::First refusal = find_refusal(visit, sums.before);
        if (any_in_block(refusal.of != advance_detail::kNever)) {
          const int32_t place = scan_(refusal, advance_detail::First{}).total.of;
          if (place % 4 == 1) {
            refusals.slots = place / 4 * 2;
          } else {
            refusals.pages = place / 4 * 2 + place % 4 / 2;
          }
          continue;
        }
        write(visit, sums.before);
        rank = rank_behind;
        rows = rows_behind;
        granted = sums.total;
        break;
      }
    }
    num_rows_ = rows.of[0] < arguments_.max_rows ? rows.of[0] : arguments_.max_rows;
    num_ranges_ = granted.ranges;
    num_opened_ = granted.opened;
    num_free_pages_ -= granted.pages;
    num_free_slots_ -= granted.opened;
    num_live_ += granted.opened;
    next_branch_id_ += granted.opened;
    num_order_ += granted.opened;
  }

  APAR_DEVICE void write(const Visit& visit, const Granted& before) {
    if (visit.slot < 0) return;
    int32_t place = visit.place + before.opened, row = visit.row, range = before.ranges;
    int32_t taken = before.pages, page = visit.last_page;
    if (visit.fed && visit.page) page = take_page(taken++, visit.slot, visit.before);
    if (visit.opens) {
      const int32_t child = forest_.free_slots[num_free_slots_ - 1 - before.opened];
      int32_t child_page = -1;
      if (visit.child_fed) child_page = take_page(taken, child, Branch{});
      add_child(visit, child, before.opened);
      store_branch(child, visit.child);
      forest_.has_row[child] = visit.child_fed ? 1 : 0;
      forest_.next_order[place++] = child;
      if (visit.child_fed) {
        write_row(row++, range, child, visit.child, config_.child_token, child_page, visit.slot, &visit.branch);
        range += visit.contexts + 2;
      }
      forest_.fork_pending[visit.slot] = 0;
    }
    forest_.next_order[place] = visit.slot;
    if (!visit.fed) return;
    store_branch(visit.slot, visit.branch);
    forest_.has_row[visit.slot] = 1;
    write_row(row, range, visit.slot, visit.branch, forest_.last_token[visit.slot], page, visit.slot, nullptr);
  }

  // The page that is `taken` below the top of the stack.
  APAR_DEVICE int32_t take_page(int32_t taken, int32_t slot, const Branch& branch) {
    const int32_t page = forest_.free_pages[num_free_pages_ - 1 - taken];
    forest_.page_table[forest_.page_row(slot) + branch.num_pages] = page;
    return page;
  }

  APAR_DEVICE void store_branch(int32_t slot, const Branch& branch) {
    forest_.num_children[slot] = branch.num_children;
    forest_.length[slot] = branch.length;
    forest_.num_pages[slot] = branch.num_pages;
    forest_.kept_pages[slot] = branch.kept_pages;
    forest_.kept_slots[slot] = branch.kept_slots;
  }

  APAR_DEVICE void add_child(const Visit& visit, int32_t slot, int32_t opened) {
    const int32_t parent = visit.slot, request = forest_.request[parent];
    const int64_t event = int64_t{opened} * kOpenedColumns;
    forest_.opened[event] = slot;
    forest_.opened[event + 1] = next_branch_id_ + opened;
    forest_.opened[event + 2] = forest_.branch_id[parent];
    forest_.opened[event + 3] = request;
    forest_.opened[event + 4] = last_position(visit.branch);
    forest_.opened[event + 5] = visit.branch.num_children - 1;

    forest_.state[slot] = kLive;
    forest_.parent[slot] = parent;
    forest_.branch_id[slot] = next_branch_id_ + opened;
    forest_.request[slot] = request;
    forest_.depth[slot] = visit.child.depth;
    forest_.first_position[slot] = visit.child.first_position;
    forest_.limit[slot] = visit.child.limit;
    forest_.last_token[slot] = config_.child_token;
    forest_.fork_pending[slot] = 0;
    const int32_t contexts = forest_.num_context[parent];
    const int64_t from = forest_.context_row(parent), to = forest_.context_row(slot);
    for (int32_t i = 0; i < contexts; ++i) {
      forest_.context_stream[to + i] = forest_.context_stream[from + i];
      forest_.context_begin[to + i] = forest_.context_begin[from + i];
      forest_.context_end[to + i] = forest_.context_end[from + i];
    }
    forest_.context_stream[to + contexts] = parent;
    forest_.context_begin[to + contexts] = 0;
    forest_.context_end[to + contexts] = visit.branch.length;
    forest_.num_context[slot] = contexts + 1;
  }

  // `context_slot` has the context; behind it stands `parent` itself, if there is one.
  APAR_DEVICE void write_row(int32_t row, int32_t range, int32_t slot, const Branch& branch, int32_t token,
                             int32_t page, int32_t context_slot, const Branch* parent) {
    const int32_t position = last_position(branch);
    forest_.row_slot[row] = slot;
    forest_.row_token[row] = token;
    forest_.row_position[row] = position;
    forest_.row_kv_slot[row] = kv_slot_in(forest_, page, branch.length - 1);
    forest_.row_may_fork[row] =
        may_fork(config_, token, branch.depth, branch.num_children, position, branch.limit) ? 1 : 0;
    forest_.row_indptr[row] = range;
    const auto add = [&](int32_t stream, int32_t begin, int32_t end) {
      forest_.range_stream[range] = stream;
      forest_.range_begin[range] = begin;
      forest_.range_end[range] = end;
      ++range;
    };
    const int64_t context = forest_.context_row(context_slot);
    const int32_t contexts = forest_.num_context[context_slot];
    for (int64_t c = context; c < context + contexts; ++c) {
      add(forest_.context_stream[c], forest_.context_begin[c], forest_.context_end[c]);
    }
    if (parent != nullptr) add(context_slot, 0, parent->length);
    add(slot, 0, branch.length);
  }

  // ---- what follows the pass

  APAR_DEVICE void finish_order() {
    for (int32_t i = thread_; i < num_order_; i += threads_) forest_.order[i] = forest_.next_order[i];
  }

  APAR_DEVICE void write_padding() {
    for (int32_t row = num_rows_ + thread_; row < old_rows_; row += threads_) {
      forest_.row_slot[row] = -1;
      forest_.row_token[row] = 0;
      forest_.row_position[row] = 0;
      forest_.row_kv_slot[row] = -1;
      forest_.row_may_fork[row] = 0;
    }
    for (int32_t row = num_rows_ + thread_; row <= config_.max_rows; row += threads_) {
      forest_.row_indptr[row] = num_ranges_;
    }
    for (int32_t range = num_ranges_ + thread_; range < old_ranges_; range += threads_) {
      forest_.range_stream[range] = 0;
      forest_.range_begin[range] = 0;
      forest_.range_end[range] = 0;
    }
  }

  APAR_DEVICE void write_plan() {
    const PlanInput input = step_plan_input(forest_, num_rows_, num_ranges_);
    if (plan_work_space(num_rows_, num_ranges_) <= arguments_.shared_ints) {
      write_plan_in(input, Arena<SharedInts>{{shared_}});
    } else {
      write_plan_in(input, Arena<GlobalInts>{{arguments_.scratch}});
    }
  }

  template <class Ints>
  APAR_DEVICE void write_plan_in(const PlanInput& input, Arena<Ints> arena) {
    PlanWorkSpace<Ints> space(arena, num_rows_, num_ranges_);
    const WindowView everything;
    const RangeCheck unchecked;
    BlockPlan<Ints>(input, everything, unchecked, space, scan_, forest_.plan_schedule.pointer).write();
  }

  const AdvanceArguments& arguments_;
  const ForestOf<GlobalInts>& forest_;
  const ForestConfig& config_;
  const GlobalInts header_;
  BlockScan scan_;
  int32_t* const shared_;
  const int32_t thread_, threads_;

  int32_t num_free_pages_ = 0, num_free_slots_ = 0, num_order_ = 0, num_live_ = 0, num_shared_ = 0;
  int32_t next_branch_id_ = 0, old_rows_ = 0, old_ranges_ = 0;
  int32_t num_rows_ = 0, num_ranges_ = 0, num_opened_ = 0, num_ended_ = 0, num_done_ = 0;
  bool release_due_ = false;
};

constexpr int kAdvanceThreads = 512;

APAR_KERNEL(kAdvanceThreads, 1)
advance_kernel(APAR_GRID_CONSTANT AdvanceArguments arguments) { Advance(arguments, shared_memory<int32_t>()).run(); }

}  // namespace apar::cuda
