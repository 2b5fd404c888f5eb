#include "cpu/append_kv.h"

#include <algorithm>
#include <cstring>

namespace apar::cpu {

int64_t find_bad_slot(const int32_t* slots, int64_t rows, int64_t num_slots) {
  for (int64_t row = 0; row < rows; ++row) {
    if (slots[row] < -1 || slots[row] >= num_slots) return row;
  }
  return -1;
}

void append_kv(const AppendKvParams& params, const ParallelFor& parallel_for) {
  // A thread is worth waking for some tens of kilobytes.
  constexpr int64_t kBytesPerTask = 64 * 1024;
  const int64_t row_bytes = std::max<int64_t>(1, 2 * params.num_kv_heads * params.head_bytes);
  const int64_t grain = std::max<int64_t>(1, kBytesPerTask / row_bytes);
  parallel_for(params.rows, grain, [&params](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (params.slots[row] < 0) continue;
      for (int64_t head = 0; head < params.num_kv_heads; ++head) {
        const int64_t target = cache_offset_bytes(params, params.slots[row], head);
        std::memcpy(params.k_cache + target,
                    params.k + row * params.k_row_stride_bytes + head * params.k_head_stride_bytes, params.head_bytes);
        std::memcpy(params.v_cache + target,
                    params.v + row * params.v_row_stride_bytes + head * params.v_head_stride_bytes, params.head_bytes);
      }
    }
  });
}

}  // namespace apar::cpu
