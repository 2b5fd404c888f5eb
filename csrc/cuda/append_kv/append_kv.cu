#include "cuda/append_kv/append_kv.h"

#include <algorithm>
#include <cstdint>

#include "cuda/append_kv/kernel.cuh"
#include "cuda/launch.h"

namespace apar::cuda {
namespace {

// Largest power of two up to 16 that divides every address the kernel forms.
int vector_bytes(const AppendKvParams& params) {
  uintptr_t bits = 16;
  for (const char* pointer :
       {params.k, params.v, static_cast<const char*>(params.k_cache), static_cast<const char*>(params.v_cache)}) {
    bits |= reinterpret_cast<uintptr_t>(pointer);
  }
  for (const int64_t stride : {params.head_bytes, params.k_row_stride_bytes, params.k_head_stride_bytes,
                               params.v_row_stride_bytes, params.v_head_stride_bytes}) {
    bits |= static_cast<uintptr_t>(stride);
  }
  return static_cast<int>(bits & (~bits + 1));
}

// vector_bytes: of a vector in the caches.
void launch_append_kv(void (*kernel)(AppendKvParams), int vector_bytes, const AppendKvParams& params, void* stream) {
  constexpr int64_t kMaxBlocks = 1 << 16;  // the kernel loops over what is left
  const int64_t vectors = params.rows * params.num_kv_heads * (params.head_bytes / vector_bytes);
  const int64_t blocks = std::min((vectors + kAppendKvThreads - 1) / kAppendKvThreads, kMaxBlocks);
  launch("append_kv", kernel, blocks, kAppendKvThreads, 0, stream, params);
}

template <typename Source>
void launch_e4m3(const AppendKvParams& params, void* stream) {
  if (vector_bytes(params) == 16) {
    return launch_append_kv(append_kv_e4m3_kernel<Source, 16>, 16, params, stream);
  }
  launch_append_kv(append_kv_e4m3_kernel<Source, 1>, 1, params, stream);
}

void launch_copy(const AppendKvParams& params, void* stream) {
  switch (vector_bytes(params)) {
    case 16:
      return launch_append_kv(append_kv_kernel<16>, 16, params, stream);
    case 8:
      return launch_append_kv(append_kv_kernel<8>, 8, params, stream);
    case 4:
      return launch_append_kv(append_kv_kernel<4>, 4, params, stream);
    case 2:
      return launch_append_kv(append_kv_kernel<2>, 2, params, stream);
    default:
      return launch_append_kv(append_kv_kernel<1>, 1, params, stream);
  }
}

}  // namespace

void append_kv(AppendKvParams params, int device, void* stream) {
  if (params.rows == 0 || params.num_kv_heads == 0 || params.head_bytes == 0) return;
  const DeviceScope scope(device);
  params.report = device_report();
  switch (params.conversion) {
    case KvConversion::kNone:
      return launch_copy(params, stream);
    case KvConversion::kFloat32ToE4m3:
      return launch_e4m3<float>(params, stream);
    case KvConversion::kFloat16ToE4m3:
      return launch_e4m3<Half>(params, stream);
    case KvConversion::kBFloat16ToE4m3:
      return launch_e4m3<BFloat16>(params, stream);
  }
}

}  // namespace apar::cuda
