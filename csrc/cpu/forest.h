// What a host does to a forest between steps. Every function checks before it writes and throws std::invalid_argument,
// whose text starts with the operator's name.
#pragma once

#include "core/forest_rules.h"

namespace apar::cpu {

// The forest in a tensor of `size` numbers; throws where it is none. `op` is named in the error.
Forest open_forest(const char* op, int32_t* data, int64_t size);

// Throws where a configuration cannot be: "forest_reset: page_size is 12, expected a power of two from 8 to 128".
void check_config(const char* op, const ForestConfig& config);

// Makes an empty forest; data holds the configuration in its header and `size` numbers.
void forest_reset(int32_t* data, int64_t size);

// All return a slot or, where the pool has no room now, -1.
int32_t forest_admit(const Forest& forest, int64_t request, int64_t prompt_length, int64_t limit, int64_t last_token,
                     int64_t shared_slot);
int32_t forest_open_shared(const Forest& forest, int64_t length);

void forest_close_shared(const Forest& forest, int64_t slot);
void forest_join(const Forest& forest, int64_t parent, const int32_t* children, int64_t num_children);

// Ends all branches of a request and returns how many there were.
int32_t forest_cancel(const Forest& forest, int64_t request);

// Clips ranges to the window of the row that reads them: begins[i] for the entries whose position is larger than the
// row's position - window. All but begins: as in a forest.
struct WindowInput {
  int64_t rows;
  const int32_t* row_indptr;
  const int32_t* row_position;
  const int32_t* range_stream;
  const int32_t* range_begin;
  const int32_t* range_end;
  const int32_t* first_position;
  int32_t window;
};
void window_begins(const WindowInput& input, int32_t* begins);

}  // namespace apar::cpu
