// Limits of plans and attention that operators check alike.
#pragma once

#include "core/plan.h"
#include "ops/check.h"

namespace apar::ops {

inline void check_heads(const Check& check, int64_t num_kv_heads, int64_t group_size) {
  check.that(num_kv_heads >= 1, "num_kv_heads is ", num_kv_heads, ", expected at least 1");
  check.that(group_size >= 1, "group_size is ", group_size, ", expected at least 1");
  check.that(
      num_kv_heads <= kMaxQueryHeads && group_size <= kMaxQueryHeads && num_kv_heads * group_size <= kMaxQueryHeads,
      "num_kv_heads * group_size is ", num_kv_heads, " * ", group_size, " query heads, expected at most ",
      kMaxQueryHeads);
}

inline void check_page_size(const Check& check, const char* name, int64_t page_size) {
  for (const int64_t allowed : {8, 16, 32, 64, 128}) {
    if (page_size == allowed) return;
  }
  check.fail(name, " is ", page_size, ", expected one of 8, 16, 32, 64, 128");
}

inline void check_head_dim(const Check& check, const char* name, int64_t head_dim) {
  for (const int64_t allowed : {32, 64, 80, 96, 128, 256}) {
    if (head_dim == allowed) return;
  }
  check.fail(name, " has head_dim ", head_dim, ", expected one of 32, 64, 80, 96, 128, 256");
}

}  // namespace apar::ops
