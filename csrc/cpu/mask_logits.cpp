#include "cpu/mask_logits.h"

namespace apar::cpu {
namespace {

template <class Element>
void mask_rows(const MaskLogitsParams& params, int64_t begin, int64_t end) {
  const auto minus_infinity = static_cast<Element>(params.minus_infinity);
  for (int64_t row = begin; row < end; ++row) {
    Element* logits = static_cast<Element*>(params.logits) + row * params.row_stride;
    if (params.child_token >= 0) logits[params.child_token] = minus_infinity;
    if (params.fork_token >= 0 && params.may_fork[row] == 0) logits[params.fork_token] = minus_infinity;
  }
}

}  // namespace

void mask_logits(const MaskLogitsParams& params, const ParallelFor& parallel_for) {
  constexpr int64_t kRowsPerTask = 4096;
  parallel_for(params.rows, kRowsPerTask, [&params](int64_t begin, int64_t end) {
    switch (params.element_bytes) {
      case 2:
        return mask_rows<uint16_t>(params, begin, end);
      case 4:
        return mask_rows<uint32_t>(params, begin, end);
      case 8:
        return mask_rows<uint64_t>(params, begin, end);
    }
  });
}

}  // namespace apar::cpu
