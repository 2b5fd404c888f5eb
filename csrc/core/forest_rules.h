// The rules of advance: what one token, one branch or one grant means. Every implementation (CPU, CUDA) calls these and
// differs only in how it walks over branches. docs/forest.md derives them. `Forest` is any ForestOf.
#pragma once

#include "core/forest_layout.h"

namespace apar {

// ---- tokens ----

// What a sampled token does to its branch; those that end it come last, as their reasons do.
enum class Outcome : int32_t { kContinue, kFork, kStop, kLength, kCancelled };

constexpr int32_t kEndBranch = -1;  // "sampled" by the host: end this branch now

APAR_HOST_DEVICE inline bool ends_branch(Outcome outcome) { return outcome >= Outcome::kStop; }
APAR_HOST_DEVICE inline EndReason end_reason(Outcome outcome) {
  return static_cast<EndReason>(static_cast<int32_t>(outcome) - static_cast<int32_t>(Outcome::kStop));
}

APAR_HOST_DEVICE inline bool is_stop_token(const ForestConfig& config, int32_t token) {
  for (int32_t i = 0; i < config.num_stop_tokens; ++i) {
    if (config.stop_tokens[i] == token) return true;
  }
  return false;
}

// `may_fork`: of the row that sampled the token. `position`: where the token stands. A fork token that was sampled
// where none may stand is an ordinary token.
APAR_HOST_DEVICE inline Outcome token_outcome(const ForestConfig& config, int32_t token, bool may_fork,
                                              int32_t position, int32_t limit) {
  if (token == kEndBranch) return Outcome::kCancelled;
  if (is_stop_token(config, token)) return Outcome::kStop;
  if (position >= limit - 1) return Outcome::kLength;
  return may_fork && token == config.fork_token ? Outcome::kFork : Outcome::kContinue;
}

// Whether the token sampled behind `token`, which is fed at `position`, may be the fork token: room is needed for
// [Fork] (position + 1), [Child] (position + 2) and one token of the detail (position + 3).
APAR_HOST_DEVICE inline bool may_fork(const ForestConfig& config, int32_t token, int32_t depth, int32_t num_children,
                                      int32_t position, int32_t limit) {
  return config.fork_token >= 0 && depth + 1 < config.max_depth && num_children < config.max_children &&
         token != config.fork_token && token != config.child_token && position < limit - 3;
}

// ---- pages ----

template <class Forest>
APAR_HOST_DEVICE int32_t pages_for(const Forest& forest, int32_t entries) {
  return (entries + forest.config.page_size - 1) >> forest.page_shift;
}

// Pages that a stream can ever hold: the token at limit - 1 ends its branch and is never fed.
template <class Forest>
APAR_HOST_DEVICE int32_t stream_pages(const Forest& forest, int32_t first_position, int32_t limit) {
  return pages_for(forest, limit - 1 - first_position);
}

// Where an entry lies that is in page `page`.
template <class Forest>
APAR_HOST_DEVICE int32_t kv_slot_in(const Forest& forest, int32_t page, int32_t entry) {
  return (page << forest.page_shift) + (entry & (forest.config.page_size - 1));
}

// First entry of [begin, end) of a stream that a row sees whose window has so many positions; `end` if it sees none.
APAR_HOST_DEVICE inline int32_t window_begin(int32_t row_position, int32_t window, int32_t first_position,
                                             int32_t begin, int32_t end) {
  const int64_t first_visible = int64_t{row_position} - window + 1 - first_position;
  const int64_t clipped = first_visible < end ? first_visible : end;
  return clipped > begin ? static_cast<int32_t>(clipped) : begin;
}

// ---- a branch ----

template <class Forest>
APAR_HOST_DEVICE bool is_kept_for_parent(const Forest& forest, int32_t slot) {
  if (!forest.config.keep_finished) return false;
  const int32_t parent = forest.parent[slot];
  return parent >= 0 && forest.state[parent] == kLive;
}

// The numbers of an unfinished branch that feeding and granting look at and change.
struct Branch {
  int32_t depth, num_children, length, first_position, limit, num_pages, kept_pages, kept_slots;
  bool kept_for_parent;
};

template <class Forest>
APAR_HOST_DEVICE Branch load_branch(const Forest& forest, int32_t slot) {
  return {.depth = forest.depth[slot],
          .num_children = forest.num_children[slot],
          .length = forest.length[slot],
          .first_position = forest.first_position[slot],
          .limit = forest.limit[slot],
          .num_pages = forest.num_pages[slot],
          .kept_pages = forest.kept_pages[slot],
          .kept_slots = forest.kept_slots[slot],
          .kept_for_parent = is_kept_for_parent(forest, slot)};
}

// Whether feeding takes a page.
template <class Forest>
APAR_HOST_DEVICE bool needs_page(const Forest& forest, const Branch& branch) {
  return branch.length == branch.num_pages << forest.page_shift;
}

APAR_HOST_DEVICE inline void feed(Branch& branch, bool takes_page) {
  branch.num_pages += takes_page ? 1 : 0;
  ++branch.length;
}

// Position of the token fed last.
APAR_HOST_DEVICE inline int32_t last_position(const Branch& branch) {
  return branch.first_position + branch.length - 1;
}

// ---- the banker's rule ----

// Pages and slots, of whatever is counted.
struct Amount {
  int64_t pages;
  int64_t slots;
};

// What a branch may still take until it and its future subtree, written one after the other, have ended. `own_pages`:
// as many as its stream can ever hold; `held_pages`: as many as it holds.
APAR_HOST_DEVICE inline Amount need_of(const ForestConfig& config, int64_t own_pages, int64_t held_pages, int64_t depth,
                                       int64_t num_children) {
  const int64_t more = own_pages - held_pages;
  const int64_t children = config.max_children - num_children;
  const int64_t levels = children > 0 ? config.max_depth - 1 - depth : 0;
  // Children go one after the other along one path, so that the path's pages are shared out: one partly filled page
  // more per level.
  if (!config.keep_finished) return {more + levels, levels};
  // Children stay until the branch ends, and so do theirs while they write.
  const int64_t kept = levels > 0 ? children + (levels - 1) * config.max_children : 0;
  return {more + kept * own_pages, kept};
}

template <class Forest>
APAR_HOST_DEVICE Amount need_of(const Forest& forest, const Branch& branch) {
  return need_of(forest.config, stream_pages(forest, branch.first_position, branch.limit), branch.num_pages,
                 branch.depth, branch.num_children);
}

// What becomes free once an unfinished branch and everything before it in the order have ended. A branch that is kept
// for its parent gives nothing back then, and has taken the rest of its pages; its parent gives it back.
template <class Forest>
APAR_HOST_DEVICE Amount returned_by(const Forest& forest, const Branch& branch) {
  const int64_t kept_pages = branch.kept_pages, kept_slots = branch.kept_slots, held = branch.num_pages;
  if (!branch.kept_for_parent) return {kept_pages + held, kept_slots + 1};
  const int64_t own = stream_pages(forest, branch.first_position, branch.limit);
  return {kept_pages + held - own, kept_slots};
}

// What a parent gives back for a child that is unfinished and will be kept for it.
template <class Forest>
APAR_HOST_DEVICE Amount kept_by_parent(const Forest& forest, int32_t first_position, int32_t limit) {
  return {stream_pages(forest, first_position, limit), 1};
}

// The child that a parent opens when its fork token has been fed.
template <class Forest>
APAR_HOST_DEVICE Branch open_child(const Forest& forest, Branch& parent) {
  const Branch child = {.depth = parent.depth + 1,
                        .num_children = 0,
                        .length = 0,
                        .first_position = last_position(parent) + 1,
                        .limit = parent.limit,
                        .num_pages = 0,
                        .kept_pages = 0,
                        .kept_slots = 0,
                        .kept_for_parent = forest.config.keep_finished != 0};
  ++parent.num_children;
  if (child.kept_for_parent) {
    const Amount kept = kept_by_parent(forest, child.first_position, child.limit);
    parent.kept_pages += static_cast<int32_t>(kept.pages);
    parent.kept_slots += static_cast<int32_t>(kept.slots);
  }
  return child;
}

// Decides about one kind of resource while branches are met in reading order. Taking n from the pool for the branch at
// hand keeps the forest safe if and only if may_take(n): every branch met before could still finish, in order, with
// what is left.
struct Bank {
  int64_t free;          // in the pool
  int64_t returned = 0;  // by the branches met so far
  int64_t lowest = 0;    // over the branches met so far: returned before it - its need

  APAR_HOST_DEVICE bool may_take(int64_t count) const { return free + lowest >= count; }
  APAR_HOST_DEVICE void take(int64_t count) { free -= count; }
  // Goes past an unfinished branch, grants included.
  APAR_HOST_DEVICE void pass(int64_t need, int64_t gives) {
    if (returned - need < lowest) lowest = returned - need;
    returned += gives;
  }
};

// ---- the step ----

// What the plan of the step at hand is made of.
template <class Forest>
APAR_HOST_DEVICE PlanInput step_plan_input(const Forest& forest, int32_t num_rows, int32_t num_ranges) {
  return {.num_rows = num_rows,
          .num_ranges = num_ranges,
          .row_indptr = address_of(forest.row_indptr),
          .range_stream = address_of(forest.range_stream),
          .range_begin = address_of(forest.range_begin),
          .range_end = address_of(forest.range_end),
          .num_streams = forest.config.num_slots,
          .max_pages = forest.config.max_pages,
          .max_page = forest.config.num_pages - 1,
          .num_kv_heads = forest.config.num_kv_heads,
          .group_size = forest.config.group_size,
          .page_size = forest.config.page_size};
}

}  // namespace apar
