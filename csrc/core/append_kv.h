// What append_kv is told, on every device: plain pointers and sizes in bytes.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace apar {

struct DeviceReport;

// How keys and values become what the cache holds.
enum class KvConversion : int32_t { kNone, kFloat32ToE4m3, kFloat16ToE4m3, kBFloat16ToE4m3 };

// k, v: [rows, num_kv_heads, head_dim], last dimension contiguous, strides as given.
// k_cache, v_cache: [num_pages, num_kv_heads, page_size, head_dim], contiguous.
// slots: [rows], page * page_size + offset, or -1: the row is skipped.
// k_scale, v_scale: [num_kv_heads] or null; where numbers are converted they are divided by their head's scale first.
struct AppendKvParams {
  const char* k;
  const char* v;
  char* k_cache;
  char* v_cache;
  const int32_t* slots;
  DeviceReport* report;  // on a device: where a slot out of range is told of
  const float* k_scale;
  const float* v_scale;
  int64_t rows;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t num_slots;
  int64_t page_size;
  int64_t head_bytes;  // of an entry of one head in the caches
  int64_t k_row_stride_bytes;
  int64_t k_head_stride_bytes;
  int64_t v_row_stride_bytes;
  int64_t v_head_stride_bytes;
  KvConversion conversion;
};

// Distance of the entry of one slot and one head from the start of a cache.
APAR_HOST_DEVICE inline int64_t cache_offset_bytes(const AppendKvParams& params, int64_t slot, int64_t head) {
  const int64_t page = slot / params.page_size;
  const int64_t offset = slot % params.page_size;
  return ((page * params.num_kv_heads + head) * params.page_size + offset) * params.head_bytes;
}

}  // namespace apar
