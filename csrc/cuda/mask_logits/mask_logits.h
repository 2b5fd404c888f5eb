#pragma once

#include "core/mask_logits.h"

namespace apar::cuda {

// Writes -inf to the child column of every row and to the fork column of rows that may not fork, on `stream` of
// `device`.
void mask_logits(const MaskLogitsParams& params, int device, void* stream);

}  // namespace apar::cuda
