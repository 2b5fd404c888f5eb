#pragma once

#include "core/mask_logits.h"
#include "cpu/parallel.h"

namespace apar::cpu {

// Writes -inf to the child column of every row and to the fork column of rows that may not fork.
void mask_logits(const MaskLogitsParams& params, const ParallelFor& parallel_for);

}  // namespace apar::cpu
