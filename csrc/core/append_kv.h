// What append_kv is told, on every device: plain pointers and sizes in bytes, since it only moves bits.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace apar {

// k, v: [rows, num_kv_heads, head_dim], last dimension contiguous, strides as given.
// k_cache, v_cache: [num_pages, num_kv_heads, page_size, head_dim], contiguous.
// slots: [rows], page * page_size + offset, or -1: the row is skipped.
struct AppendKvParams {
  const char* k;
  const char* v;
  char* k_cache;
  char* v_cache;
  const int32_t* slots;
  int64_t rows;
  int64_t num_kv_heads;
  int64_t num_slots;
  int64_t page_size;
  int64_t head_bytes;
  int64_t k_row_stride_bytes;
  int64_t k_head_stride_bytes;
  int64_t v_row_stride_bytes;
  int64_t v_head_stride_bytes;
};

// Distance of the entry of one slot and one head from the start of a cache.
APAR_HOST_DEVICE inline int64_t cache_offset_bytes(const AppendKvParams& params, int64_t slot, int64_t head) {
  const int64_t page = slot / params.page_size;
  const int64_t offset = slot % params.page_size;
  return ((page * params.num_kv_heads + head) * params.page_size + offset) * params.head_bytes;
}

}  // namespace apar
