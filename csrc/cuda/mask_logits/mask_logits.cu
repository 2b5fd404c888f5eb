#include "cuda/mask_logits/mask_logits.h"

#include "cuda/launch.h"
#include "cuda/mask_logits/kernel.cuh"

namespace apar::cuda {
namespace {

template <typename Bits>
void launch_mask_logits(const MaskLogitsParams& params, void* stream) {
  const int64_t blocks = (params.rows + kMaskLogitsThreads - 1) / kMaskLogitsThreads;
  launch("mask_logits_", mask_logits_kernel<Bits>, blocks, kMaskLogitsThreads, 0, stream, params);
}

}  // namespace

void mask_logits(const MaskLogitsParams& params, int device, void* stream) {
  if (params.rows == 0) return;
  const DeviceScope scope(device);
  switch (params.element_bytes) {
    case 2:
      return launch_mask_logits<uint16_t>(params, stream);
    case 4:
      return launch_mask_logits<uint32_t>(params, stream);
    default:
      return launch_mask_logits<uint64_t>(params, stream);
  }
}

}  // namespace apar::cuda
