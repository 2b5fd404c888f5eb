// draw_numbers: one block; a barrier parts the keys that are written from the rows that read them.
#pragma once

#include "core/choose_tokens.h"
#include "core/token_rules.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kDrawThreads = 256;
constexpr int kOpenedColumns = 6;  // slot, branch_id, parent_branch_id, request, fork_position, child_index

APAR_KERNEL(kDrawThreads, 1)
draw_numbers_kernel(APAR_GRID_CONSTANT DrawNumbersParams params) {
  // A parent was not opened in the same step: its key is there.
  const int num_opened = load_constant(params.num_opened);
  for (int i = thread_index(); i < num_opened; i += kDrawThreads) {
    const int slot = load_constant(params.opened + i * kOpenedColumns);
    const int child_index = load_constant(params.opened + i * kOpenedColumns + 5);
    store_global(params.keys + slot,
                 child_key(load_global(params.keys + load_constant(params.parent + slot)), child_index));
  }
  synchronize_block();
  for (int row = thread_index(); row < params.rows; row += kDrawThreads) {
    const int slot = load_constant(params.row_slot + row);
    const int position = load_constant(params.row_position + row) + 1;
    store_global(params.numbers + row, slot < 0 ? 0 : random_number(load_global(params.keys + slot), position));
  }
}

}  // namespace apar::cuda
