// Checks of the scales of fp8 caches, which append_kv and tree_attention share.
#pragma once

#include <cmath>

#include "ops/check.h"

namespace apar::ops {

inline void check_kv_scale(const Check& check, const char* name, const Tensor& scale, int64_t num_kv_heads,
                           const char* other_name, const Tensor& other) {
  check.same_device(name, scale, other_name, other);
  check.dtype(name, scale, {ScalarType::Float});
  check.shape(name, scale, {{"Hkv", num_kv_heads}});
  check.contiguous(name, scale);
}

// On the CPU alone: reading them on another device would wait for it. scale: [num_kv_heads] or null.
inline void check_scale_values(const Check& check, const char* name, const float* scale, int64_t num_kv_heads) {
  for (int64_t head = 0; scale != nullptr && head < num_kv_heads; ++head) {
    check.that(std::isfinite(scale[head]) && scale[head] > 0, name, "[", head, "] is ", scale[head],
               ", expected a finite number above 0");
  }
}

}  // namespace apar::ops
