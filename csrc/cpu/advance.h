// A decode step of all branches, on the CPU: the readable specification of advance (docs/forest.md).
#pragma once

#include "core/forest_rules.h"

namespace apar::cpu {

// Row whose sampled token is neither a token nor -1, or -1 if there is none. sampled: [num_rows].
int64_t find_bad_token(const Forest& forest, const int32_t* sampled);

// Ends, forks and feeds branches by the tokens sampled in the step just run, then makes the next step.
// sampled: [num_rows], which must have passed find_bad_token. row_limit: most rows of the next step, at least 1; what
// is beyond max_rows changes nothing.
void advance(const Forest& forest, const int32_t* sampled, int32_t row_limit);

// Makes the next step without sampled tokens. Rows of the present step keep their places in it.
void schedule(const Forest& forest);

// Events tell of one call; the next one that makes any starts anew.
void clear_events(const Forest& forest);

// Ends an unfinished branch: writes the event, leaves its stream to release.
void end_branch(const Forest& forest, int32_t slot, EndReason reason);

// Gives back what no unfinished branch reads, and notes for what is kept which branch reads it last.
void release(const Forest& forest);

// The bank of pages and the bank of slots behind the last branch in the order.
struct Banks {
  Bank pages;
  Bank slots;
};
Banks bank_all(const Forest& forest);

// The pools are stacks. All take from their tops; callers have asked the bank.
int32_t take_slot(const Forest& forest);
int32_t take_page(const Forest& forest);
void add_page(const Forest& forest, int32_t slot);

}  // namespace apar::cpu
