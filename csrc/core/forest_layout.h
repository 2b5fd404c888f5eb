// Where everything of a forest lies: one int32 tensor, cut into a header and named tensors.
//
// The lists below are the only place that names a field; the struct of pointers that the rules and kernels use, the
// offsets, and the names that Python sees all follow from them. docs/forest.md says what each field means.
#pragma once

#include <bit>
#include <cstdint>

#include "core/macros.h"
#include "core/plan.h"

namespace apar {

constexpr int32_t kForestMagic = 0x52504146;  // "FAPR"
constexpr int32_t kForestVersion = 1;
constexpr int32_t kMaxStopTokens = 8;

// What a slot is used for.
enum SlotState : int32_t {
  kFree = 0,
  kLive = 1,      // the stream of an unfinished branch
  kFinished = 2,  // the branch has ended, its stream is still read
  kShared = 3,    // a prompt stream that no branch owns
};

// Why a branch ended.
enum EndReason : int32_t { kEndStop = 0, kEndLength = 1, kEndCancelled = 2 };

// Fixed when the forest is made.
#define APAR_FOREST_CONFIG(X) \
  X(num_slots)                \
  X(num_pages)                \
  X(page_size)                \
  X(max_pages)                \
  X(max_ranges)               \
  X(max_rows)                 \
  X(num_kv_heads)             \
  X(group_size)               \
  X(fork_token)               \
  X(child_token)              \
  X(max_depth)                \
  X(max_children)             \
  X(max_live_branches)        \
  X(keep_finished)            \
  X(num_stop_tokens)

#define APAR_FOREST_COUNTERS(X) \
  X(num_free_pages)             \
  X(num_free_slots)             \
  X(num_order)                  \
  X(num_live)                   \
  X(num_shared)                 \
  X(next_branch_id)             \
  X(release_due)                \
  X(num_rows)                   \
  X(num_ranges)                 \
  X(num_opened)                 \
  X(num_ended)                  \
  X(num_done)

#define APAR_DECLARE_INT32(name) int32_t name;
struct ForestConfig {
  APAR_FOREST_CONFIG(APAR_DECLARE_INT32)
  int32_t stop_tokens[kMaxStopTokens];
};

struct ForestHeader {
  int32_t magic;
  int32_t version;
  int32_t total_size;  // int32 numbers in the whole forest
  ForestConfig config;
  APAR_FOREST_COUNTERS(APAR_DECLARE_INT32)
};
#undef APAR_DECLARE_INT32
constexpr int64_t kForestHeaderSize = 64;
static_assert(sizeof(ForestHeader) <= kForestHeaderSize * sizeof(int32_t));

constexpr int32_t kOpenedColumns = 6;  // slot, branch_id, parent_branch_id, request, fork_position, child_index
constexpr int32_t kEndedColumns = 5;   // slot, branch_id, request, reason, length

// Sizes that tensors of a forest have.
struct ForestSizes {
  explicit ForestSizes(const ForestConfig& config)
      : slots(config.num_slots),
        pages(config.num_pages),
        contexts(config.max_ranges),
        table_width(config.max_pages),
        rows(config.max_rows),
        rows_and_end(rows + 1),
        ranges(rows * (contexts + 1)),
        schedule(schedule_size(rows, ranges)) {}

  int64_t slots, pages, contexts, table_width, rows, rows_and_end, ranges, schedule;
};

// X(name, rows, columns); columns 0: a vector.
#define APAR_FOREST_TENSORS(X)                          \
  /* one number or one list per slot */                 \
  X(state, sizes.slots, 0)                              \
  X(parent, sizes.slots, 0)                             \
  X(branch_id, sizes.slots, 0)                          \
  X(request, sizes.slots, 0)                            \
  X(depth, sizes.slots, 0)                              \
  X(num_children, sizes.slots, 0)                       \
  X(length, sizes.slots, 0)                             \
  X(first_position, sizes.slots, 0)                     \
  X(limit, sizes.slots, 0)                              \
  X(last_token, sizes.slots, 0)                         \
  X(fork_pending, sizes.slots, 0)                       \
  X(has_row, sizes.slots, 0)                            \
  X(pinned, sizes.slots, 0)                             \
  X(num_pages, sizes.slots, 0)                          \
  X(num_context, sizes.slots, 0)                        \
  X(context_stream, sizes.slots, sizes.contexts)        \
  X(context_begin, sizes.slots, sizes.contexts)         \
  X(context_end, sizes.slots, sizes.contexts)           \
  X(page_table, sizes.slots, sizes.table_width)         \
  /* lists over all slots and pages */                  \
  X(free_pages, sizes.pages, 0)                         \
  X(free_slots, sizes.slots, 0)                         \
  X(order, sizes.slots, 0)                              \
  X(shared, sizes.slots, 0)                             \
  /* what the release phase found, for the scheduler */ \
  X(read_end, sizes.slots, 0)                           \
  X(last_reader, sizes.slots, 0)                        \
  X(kept_pages, sizes.slots, 0)                         \
  X(kept_slots, sizes.slots, 0)                         \
  X(next_order, sizes.slots, 0)                         \
  /* the step */                                        \
  X(row_slot, sizes.rows, 0)                            \
  X(row_token, sizes.rows, 0)                           \
  X(row_position, sizes.rows, 0)                        \
  X(row_kv_slot, sizes.rows, 0)                         \
  X(row_may_fork, sizes.rows, 0)                        \
  X(row_indptr, sizes.rows_and_end, 0)                  \
  X(range_stream, sizes.ranges, 0)                      \
  X(range_begin, sizes.ranges, 0)                       \
  X(range_end, sizes.ranges, 0)                         \
  X(plan_schedule, sizes.schedule, 0)                   \
  /* events */                                          \
  X(opened, sizes.slots, kOpenedColumns)                \
  X(ended, sizes.slots, kEndedColumns)                  \
  X(done, sizes.slots, 0)

// int32 numbers that a tensor takes; every tensor starts at a multiple of 64 bytes.
inline int64_t forest_tensor_space(int64_t rows, int64_t columns) {
  return (rows * (columns == 0 ? 1 : columns) + 15) / 16 * 16;
}

// Calls visit(name, offset, rows, columns) for every tensor and returns the size of the whole forest.
template <class Visit>
int64_t visit_forest(const ForestConfig& config, const Visit& visit) {
  const ForestSizes sizes(config);
  int64_t offset = kForestHeaderSize;
#define APAR_VISIT(name, rows, columns)                  \
  visit(#name, offset, int64_t{rows}, int64_t{columns}); \
  offset += forest_tensor_space(rows, columns);
  APAR_FOREST_TENSORS(APAR_VISIT)
#undef APAR_VISIT
  return offset;
}

inline int64_t forest_size(const ForestConfig& config) {
  return visit_forest(config, [](const char*, int64_t, int64_t, int64_t) {});
}

// The tensors of a forest. `Ints` is how their numbers are reached: a pointer on the host, a class with operator[] on a
// device (cuda/advance/memory.cuh).
template <class Ints>
struct ForestOf {
  ForestHeader* header;
  ForestConfig config;
  int32_t page_shift;  // page_size is 1 << page_shift
#define APAR_DECLARE_TENSOR(name, rows, columns) Ints name;
  APAR_FOREST_TENSORS(APAR_DECLARE_TENSOR)
#undef APAR_DECLARE_TENSOR

  APAR_HOST_DEVICE int64_t context_row(int32_t slot) const { return static_cast<int64_t>(slot) * config.max_ranges; }
  APAR_HOST_DEVICE int64_t page_row(int32_t slot) const { return static_cast<int64_t>(slot) * config.max_pages; }
};

using Forest = ForestOf<int32_t*>;
APAR_HOST_DEVICE inline int32_t* address_of(int32_t* numbers) { return numbers; }

inline Forest forest_view(int32_t* data, const ForestConfig& config) {
  const ForestSizes sizes(config);
  Forest forest;
  forest.header = reinterpret_cast<ForestHeader*>(data);
  forest.config = config;
  forest.page_shift = std::countr_zero(static_cast<uint32_t>(config.page_size));
  int64_t offset = kForestHeaderSize;
#define APAR_POINT(name, rows, columns) \
  forest.name = data + offset;          \
  offset += forest_tensor_space(rows, columns);
  APAR_FOREST_TENSORS(APAR_POINT)
#undef APAR_POINT
  return forest;
}

}  // namespace apar
