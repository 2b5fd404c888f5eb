#include "cuda/tree_attention/tree_attention.h"

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/plain_kernel.cuh"
#include "cuda/tree_attention/traits.h"

namespace apar::cuda {
namespace {

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("tree_attention: " + text); }

template <typename T, int kHeadDim>
int max_packed_rows_of(int shared_bytes) {
  if constexpr (most_packed_rows(kHeadDim) >= 64) {
    if (TreeAttentionTraits<T, kHeadDim, 64>::stages_for(shared_bytes) > 0) return 64;
  }
  if (TreeAttentionTraits<T, kHeadDim, 32>::stages_for(shared_bytes) > 0) return 32;
  return TreeAttentionTraits<T, kHeadDim, 16>::stages_for(shared_bytes) > 0 ? 16 : 0;
}

template <typename T>
void launch_head_dim(const TreeAttentionArguments& arguments, int packed_rows, int64_t max_items, void* stream) {
  switch (arguments.params.head_dim) {
    case 64:
      return launch_tree_attention<T, 64>(arguments, packed_rows, max_items, stream);
    case 80:
      return launch_tree_attention<T, 80>(arguments, packed_rows, max_items, stream);
    case 96:
      return launch_tree_attention<T, 96>(arguments, packed_rows, max_items, stream);
    case 128:
      return launch_tree_attention<T, 128>(arguments, packed_rows, max_items, stream);
    case 256:
      return launch_tree_attention<T, 256>(arguments, packed_rows, max_items, stream);
    default:
      fail("q has head_dim " + std::to_string(arguments.params.head_dim) +
           ", expected one of 64, 80, 96, 128, 256 on a CUDA device");
  }
}

void launch_plain(const TreeAttentionArguments& arguments, void* stream) {
  const TreeAttentionParams& params = arguments.params;
  if (params.head_dim > kPlainMaxHeadDim) {
    fail("q has head_dim " + std::to_string(params.head_dim) + ", expected at most " +
         std::to_string(kPlainMaxHeadDim));
  }
  const int64_t warps = static_cast<int64_t>(params.num_rows) * params.num_kv_heads * params.group_size;
  launch("tree_attention", plain_attention_kernel<PlainAttentionArguments>, (warps + kPlainWarps - 1) / kPlainWarps,
         kPlainWarps * kWarpSize, kPlainWarps * params.head_dim * static_cast<int>(sizeof(float)), stream,
         PlainAttentionArguments{params, arguments.score_scale});
}

}  // namespace

int max_packed_rows(Element element, int head_dim, int device) {
  const DeviceScope scope(device);
  const DeviceLimits limits = device_limits();
  if (limits.compute_capability < 80) return 0;
  if (element == Element::kFloat32) return head_dim <= kPlainMaxHeadDim ? 64 : 0;
  switch (head_dim) {
    case 64:
      return max_packed_rows_of<Half, 64>(limits.shared_bytes_per_block);
    case 80:
      return max_packed_rows_of<Half, 80>(limits.shared_bytes_per_block);
    case 96:
      return max_packed_rows_of<Half, 96>(limits.shared_bytes_per_block);
    case 128:
      return max_packed_rows_of<Half, 128>(limits.shared_bytes_per_block);
    case 256:
      return max_packed_rows_of<Half, 256>(limits.shared_bytes_per_block);
    default:
      return 0;
  }
}

void tree_attention(const TreeAttentionParams& params, Element element, int packed_rows, int64_t max_items, int device,
                    void* stream) {
  if (params.num_rows == 0 || params.num_kv_heads == 0) return;
  const DeviceScope scope(device);
  const DeviceLimits limits = device_limits();
  if (limits.compute_capability < 80) {
    fail("the device has compute capability " + std::to_string(limits.compute_capability / 10) + "." +
         std::to_string(limits.compute_capability % 10) + ", expected 8.0 or newer");
  }
  const TreeAttentionArguments arguments{params, make_score_scale(params.scale, params.softcap), 0};
  switch (element) {
    case Element::kFloat32:
      return launch_plain(arguments, stream);
    case Element::kFloat16:
      return launch_head_dim<Half>(arguments, packed_rows, max_items, stream);
    case Element::kBFloat16:
      return launch_head_dim<BFloat16>(arguments, packed_rows, max_items, stream);
  }
}

}  // namespace apar::cuda
