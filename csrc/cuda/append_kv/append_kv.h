#pragma once

#include "core/append_kv.h"

namespace apar::cuda {

// Copies row r of k and v to slots[r] of the caches, converted where they hold another type, on `stream` of `device`.
// Slots must be distinct.
// A row whose slot is out of range is skipped and reported: reading slots on the host would cost a synchronisation.
void append_kv(AppendKvParams params, int device, void* stream);

}  // namespace apar::cuda
