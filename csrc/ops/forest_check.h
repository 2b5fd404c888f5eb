// A forest's tensor as operators take it.
#pragma once

#include <optional>

#include "core/forest_layout.h"
#include "cpu/forest.h"
#include "ops/check.h"

namespace apar::ops {

inline void check_forest(const Check& check, const Tensor& forest) {
  check.dtype("forest", forest, {ScalarType::Int});
  check.shape("forest", forest, {{"total_size"}});
  check.contiguous("forest", forest);
}

inline Forest open_forest(const char* op, const Tensor& forest) {
  check_forest(Check(op), forest);
  return cpu::open_forest(op, forest.mutable_data_ptr<int32_t>(), forest.numel());
}

// The forest on a device whose header the caller knows on the host.
inline Forest device_forest(const Check& check, const Tensor& forest, const std::optional<Tensor>& header) {
  check_forest(check, forest);
  check.that(header.has_value(), "header is missing, expected the forest's header on the CPU where forest is on CUDA");
  check.that(header->is_cpu(), "header is not on the CPU, expected the forest's header there");
  check.dtype("header", *header, {ScalarType::Int});
  check.shape("header", *header, {{"header_size", kForestHeaderSize}});
  check.contiguous("header", *header);
  const auto& numbers = *reinterpret_cast<const ForestHeader*>(header->const_data_ptr<int32_t>());
  check.that(numbers.magic == kForestMagic && numbers.version == kForestVersion,
             "header is none of a forest of this version, expected the first numbers of a Forest");
  const int64_t expected = forest_size(numbers.config);
  check.that(forest.numel() == expected, "forest has ", forest.numel(), " numbers, expected ", expected,
             " by its header");
  return forest_view(forest.mutable_data_ptr<int32_t>(), numbers.config);
}

}  // namespace apar::ops
