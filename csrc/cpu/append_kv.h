#pragma once

#include "core/append_kv.h"
#include "cpu/parallel.h"

namespace apar::cpu {

// First row whose slot is neither -1 nor in [0, num_slots), or -1 if there is none.
int64_t find_bad_slot(const int32_t* slots, int64_t rows, int64_t num_slots);

// Copies row r of k and v to slots[r] of the caches, converted where they hold another type. Slots must have passed
// find_bad_slot and be distinct.
void append_kv(const AppendKvParams& params, const ParallelFor& parallel_for);

}  // namespace apar::cpu
