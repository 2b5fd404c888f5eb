// append_kv: one thread moves one vector of K and the vector of V beside it.
// Grid: one dimension over rows x heads x vectors of a head, in a grid-stride loop; no shared memory.
#pragma once

#include "core/append_kv.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kAppendKvThreads = 256;

template <int kVectorBytes>
APAR_KERNEL(kAppendKvThreads, 4)
append_kv_kernel(APAR_GRID_CONSTANT AppendKvParams params) {
  using Element = Vector<kVectorBytes>;
  const int64_t vectors_per_head = params.head_bytes / kVectorBytes;
  const int64_t vectors_per_row = params.num_kv_heads * vectors_per_head;
  const int64_t num_vectors = params.rows * vectors_per_row;
  const int64_t threads = static_cast<int64_t>(grid_size()) * kAppendKvThreads;
  for (int64_t i = static_cast<int64_t>(block_index()) * kAppendKvThreads + thread_index(); i < num_vectors;
       i += threads) {
    const int64_t row = i / vectors_per_row;
    const int64_t head = i % vectors_per_row / vectors_per_head;
    const int64_t byte = i % vectors_per_head * kVectorBytes;
    const int32_t slot = load_constant(params.slots + row);
    if (slot == -1) continue;
    if (slot < 0 || slot >= params.num_slots) {
      stop("append_kv: slots[%lld] is %lld, expected -1 or 0 to %lld\n", row, slot, params.num_slots - 1);
    }

    const char* k = params.k + row * params.k_row_stride_bytes + head * params.k_head_stride_bytes + byte;
    const char* v = params.v + row * params.v_row_stride_bytes + head * params.v_head_stride_bytes + byte;
    const Element k_vector = load_once(reinterpret_cast<const Element*>(k));
    const Element v_vector = load_once(reinterpret_cast<const Element*>(v));
    const int64_t target = cache_offset_bytes(params, slot, head) + byte;
    store_global(reinterpret_cast<Element*>(params.k_cache + target), k_vector);
    store_global(reinterpret_cast<Element*>(params.v_cache + target), v_vector);
  }
}

}  // namespace apar::cuda
