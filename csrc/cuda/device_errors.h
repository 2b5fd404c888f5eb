#pragma once

#include <string>

namespace apar::cuda {

// What kernels have reported (core/device_report.h) since it was asked last, or an empty text. It does not wait for
// them.
std::string take_device_report();

}  // namespace apar::cuda
