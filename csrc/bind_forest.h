#pragma once

#include <pybind11/pybind11.h>

namespace apar {

// Adds forest_layout and forest_header to the module.
void bind_forest(pybind11::module_& m);

}  // namespace apar
