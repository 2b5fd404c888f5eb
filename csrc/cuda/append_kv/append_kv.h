#pragma once

#include "core/append_kv.h"

namespace apar::cuda {

// Copies row r of k and v to slots[r] of the caches, converted where they hold another type, on `stream` of `device`.
// Slots must be distinct.
// A slot out of range traps on the device: reading slots on the host would cost a synchronisation per layer.
void append_kv(const AppendKvParams& params, int device, void* stream);

}  // namespace apar::cuda
