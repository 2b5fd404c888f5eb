#include "cpu/append_kv.h"

#include <algorithm>
#include <cstring>

#include "core/numbers.h"

namespace apar::cpu {
namespace {

float to_float(float value) { return value; }
float from_float16(uint16_t bits) { return float16_to_float(bits); }
float from_bfloat16(uint16_t bits) { return bfloat16_to_float(bits); }

template <class Source, float (*kToFloat)(Source)>
void store_e4m3(char* target, const char* source, int64_t head_dim, float scale) {
  const Source* numbers = reinterpret_cast<const Source*>(source);
  for (int64_t i = 0; i < head_dim; ++i) {
    target[i] = static_cast<char>(float_to_e4m3(kToFloat(numbers[i]) / scale));
  }
}

// One entry of one head. scale: null is 1.
void store(const AppendKvParams& params, char* target, const char* source, const float* scale) {
  const float divisor = scale == nullptr ? 1.0f : *scale;
  switch (params.conversion) {
    case KvConversion::kNone:
      std::memcpy(target, source, params.head_bytes);
      return;
    case KvConversion::kFloat32ToE4m3:
      return store_e4m3<float, to_float>(target, source, params.head_dim, divisor);
    case KvConversion::kFloat16ToE4m3:
      return store_e4m3<uint16_t, from_float16>(target, source, params.head_dim, divisor);
    case KvConversion::kBFloat16ToE4m3:
      return store_e4m3<uint16_t, from_bfloat16>(target, source, params.head_dim, divisor);
  }
}

}  // namespace

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
        store(params, params.k_cache + target,
              params.k + row * params.k_row_stride_bytes + head * params.k_head_stride_bytes,
              params.k_scale == nullptr ? nullptr : params.k_scale + head);
        store(params, params.v_cache + target,
              params.v + row * params.v_row_stride_bytes + head * params.v_head_stride_bytes,
              params.v_scale == nullptr ? nullptr : params.v_scale + head);
      }
    }
  });
}

}  // namespace apar::cpu
