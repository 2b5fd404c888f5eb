// What Python needs to know about a forest's tensor: where everything lies.
#include "bind_forest.h"

#include <pybind11/stl.h>

#include <cstddef>
#include <vector>

#include "core/forest_layout.h"
#include "core/step_plan.h"
#include "cpu/forest.h"

namespace py = pybind11;

namespace apar {
namespace {

ForestConfig config_from(const py::dict& values) {
  ForestConfig config{};
#define APAR_READ(name) config.name = values[#name].cast<int32_t>();
  APAR_FOREST_CONFIG(APAR_READ)
#undef APAR_READ
  const auto stop_tokens = values["stop_tokens"].cast<std::vector<int32_t>>();
  for (size_t i = 0; i < stop_tokens.size() && i < kMaxStopTokens; ++i) config.stop_tokens[i] = stop_tokens[i];
  return config;
}

py::dict header_fields() {
  py::dict fields;
#define APAR_FIELD(name) fields[#name] = offsetof(ForestHeader, name) / sizeof(int32_t);
  APAR_FIELD(magic)
  APAR_FIELD(version)
  APAR_FIELD(total_size)
  APAR_FOREST_COUNTERS(APAR_FIELD)
#undef APAR_FIELD
#define APAR_FIELD(name) fields[#name] = offsetof(ForestHeader, config.name) / sizeof(int32_t);
  APAR_FOREST_CONFIG(APAR_FIELD)
  APAR_FIELD(stop_tokens)
#undef APAR_FIELD
  return fields;
}

py::dict layout(const py::dict& values) {
  const ForestConfig config = config_from(values);
  cpu::check_config("forest", config);
  py::dict tensors;
  const int64_t size = visit_forest(config, [&](const char* name, int64_t offset, int64_t rows, int64_t columns) {
    py::tuple shape = py::make_tuple(rows);
    if (columns > 0) shape = py::make_tuple(rows, columns);
    tensors[name] = py::make_tuple(offset, shape);
  });
  tensors["data"] = py::make_tuple(0, py::make_tuple(size));
  return tensors;
}

}  // namespace

void bind_forest(py::module_& m) {
  m.def("forest_layout", &layout, py::arg("config"),
        "Where the tensors of a forest lie: name -> (offset, shape); 'data' is the whole. Raises ValueError where the "
        "configuration cannot be.");
  m.def("forest_header", &header_fields, "Indices of the numbers in a forest's header by name.");
  m.def("step_plan_size", &step_plan_size, py::arg("rows"), py::arg("max_ranges"), py::arg("num_kv_heads"),
        py::arg("group_size"), py::arg("multiprocessors"),
        "Numbers per plan of write_step_plans: on the CPU (multiprocessors 0) or on a device with so many.");
  m.attr("FOREST_MAX_STOP_TOKENS") = kMaxStopTokens;
}

}  // namespace apar
