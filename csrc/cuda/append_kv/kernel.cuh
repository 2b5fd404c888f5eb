// append_kv: one thread moves one vector of K and the vector of V beside it.
// Grid: one dimension over rows x heads x vectors of a head, in a grid-stride loop; no shared memory.
#pragma once

#include "core/append_kv.h"
#include "cuda/device.cuh"

namespace apar::cuda {

constexpr int kAppendKvThreads = 256;

// Where one vector comes from and goes to, in bytes from the tensors' starts. Sizes are those of a vector.
struct KvMove {
  int64_t head;
  int64_t k_source;
  int64_t v_source;
  int64_t target;
  bool skipped;
};

// vector: its number over rows x heads x vectors of a head.
APAR_DEVICE KvMove find_move(const AppendKvParams& params, int64_t vector, int source_bytes, int target_bytes) {
  const int64_t vectors_per_head = params.head_bytes / target_bytes;
  const int64_t vectors_per_row = params.num_kv_heads * vectors_per_head;
  const int64_t row = vector / vectors_per_row;
  const int64_t head = vector % vectors_per_row / vectors_per_head;
  const int64_t index = vector % vectors_per_head;
  const int32_t slot = load_constant(params.slots + row);
  if (slot < 0 || slot >= params.num_slots) {
    if (slot != -1) {
      report(params.report, DeviceFault::kAppendKvSlot, static_cast<int>(row), slot,
             static_cast<int>(params.num_slots - 1));
    }
    return {.head = 0, .k_source = 0, .v_source = 0, .target = 0, .skipped = true};
  }
  return {.head = head,
          .k_source = row * params.k_row_stride_bytes + head * params.k_head_stride_bytes + index * source_bytes,
          .v_source = row * params.v_row_stride_bytes + head * params.v_head_stride_bytes + index * source_bytes,
          .target = cache_offset_bytes(params, slot, head) + index * target_bytes,
          .skipped = false};
}

// body(vector) for this thread's share of all vectors of `vector_bytes` in the caches.
template <typename Body>
APAR_DEVICE void for_each_vector(const AppendKvParams& params, int vector_bytes, const Body& body) {
  const int64_t num_vectors = params.rows * params.num_kv_heads * (params.head_bytes / vector_bytes);
  const int64_t threads = static_cast<int64_t>(grid_size()) * kAppendKvThreads;
  for (int64_t i = static_cast<int64_t>(block_index()) * kAppendKvThreads + thread_index(); i < num_vectors;
       i += threads) {
    body(i);
  }
}

template <int kVectorBytes>
APAR_KERNEL(kAppendKvThreads, 4)
append_kv_kernel(APAR_GRID_CONSTANT AppendKvParams params) {
  using Element = Vector<kVectorBytes>;
  for_each_vector(params, kVectorBytes, [&](int64_t vector) {
    const KvMove move = find_move(params, vector, kVectorBytes, kVectorBytes);
    if (move.skipped) return;
    const Element k_vector = load_once(reinterpret_cast<const Element*>(params.k + move.k_source));
    const Element v_vector = load_once(reinterpret_cast<const Element*>(params.v + move.v_source));
    store_global(reinterpret_cast<Element*>(params.k_cache + move.target), k_vector);
    store_global(reinterpret_cast<Element*>(params.v_cache + move.target), v_vector);
  });
}

// Numbers of a source vector as e4m3.
template <typename Source, int kCount>
struct E4m3Vector {
  // Loads are of at most 16 bytes.
  static constexpr int kLoadBytes = kCount * sizeof(Source) < 16 ? kCount * sizeof(Source) : 16;
  static constexpr int kPerLoad = kLoadBytes / sizeof(Source);
  using Load = Vector<kLoadBytes>;

  static APAR_DEVICE void convert(char* target, const char* source, float scale) {
    Vector<kCount> result;
#pragma unroll
    for (int part = 0; part < kCount / kPerLoad; ++part) {
      const Load loaded = load_once(reinterpret_cast<const Load*>(source) + part);
      Source numbers[kPerLoad];
      memcpy(numbers, &loaded, sizeof(loaded));
#pragma unroll
      for (int i = 0; i < kPerLoad; ++i) {
        result.data[part * kPerLoad + i] = to_e4m3(divide(to_float(numbers[i]), scale));
      }
    }
    store_global(reinterpret_cast<Vector<kCount>*>(target), result);
  }
};

// kCount: numbers that a thread converts, 16 or 1.
template <typename Source, int kCount>
APAR_KERNEL(kAppendKvThreads, 2)
append_kv_e4m3_kernel(APAR_GRID_CONSTANT AppendKvParams params) {
  for_each_vector(params, kCount, [&](int64_t vector) {
    const KvMove move = find_move(params, vector, kCount * static_cast<int>(sizeof(Source)), kCount);
    if (move.skipped) return;
    const float k_scale = params.k_scale == nullptr ? 1.0f : load_constant(params.k_scale + move.head);
    const float v_scale = params.v_scale == nullptr ? 1.0f : load_constant(params.v_scale + move.head);
    E4m3Vector<Source, kCount>::convert(params.k_cache + move.target, params.k + move.k_source, k_scale);
    E4m3Vector<Source, kCount>::convert(params.v_cache + move.target, params.v + move.v_source, v_scale);
  });
}

}  // namespace apar::cuda
