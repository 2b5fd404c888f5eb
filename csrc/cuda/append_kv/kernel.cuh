// append_kv: one thread moves one vector of K and the vector of V beside it.
// Grid: one dimension over rows x heads x vectors of a head, in a grid-stride loop; no shared memory.
#pragma once

#include "core/append_kv.h"
#include "cuda/device.cuh"

namespace apar::cuda {

template <int kVectorBytes>
__global__ void append_kv_kernel(const __grid_constant__ AppendKvParams params) {
  const int64_t vectors_per_head = params.head_bytes / kVectorBytes;
  const int64_t vectors_per_row = params.num_kv_heads * vectors_per_head;
  const int64_t num_vectors = params.rows * vectors_per_row;
  for (int64_t i = device::thread_in_grid(); i < num_vectors; i += device::threads_of_grid()) {
    const int64_t row = i / vectors_per_row;
    const int64_t head = i % vectors_per_row / vectors_per_head;
    const int64_t byte = i % vectors_per_head * kVectorBytes;
    const int32_t slot = params.slots[row];
    if (slot == -1) continue;
    if (slot < 0 || slot >= params.num_slots) {
      printf("append_kv: slots[%lld] is %d, expected -1 or 0 to %lld\n", static_cast<long long>(row), slot,
             static_cast<long long>(params.num_slots - 1));
      device::trap();
    }

    const char* k = params.k + row * params.k_row_stride_bytes + head * params.k_head_stride_bytes + byte;
    const char* v = params.v + row * params.v_row_stride_bytes + head * params.v_head_stride_bytes + byte;
    const auto k_vector = device::load_once<kVectorBytes>(k);
    const auto v_vector = device::load_once<kVectorBytes>(v);
    const int64_t target = cache_offset_bytes(params, slot, head) + byte;
    device::store<kVectorBytes>(params.k_cache + target, k_vector);
    device::store<kVectorBytes>(params.v_cache + target, v_vector);
  }
}

}  // namespace apar::cuda
