// apar_ext._C: importing it registers the operators; its functions are what is no tensor operator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bind_forest.h"
#include "cpu/cpu_features.h"
#if defined(APAR_WITH_CUDA)
#include "cuda/device_errors.h"
#endif

namespace py = pybind11;

namespace {

#if defined(APAR_WITH_CUDA)
constexpr bool kCudaBuilt = true;
constexpr const char* kCudaArchs = APAR_CUDA_ARCHS;
constexpr const char* kNvccVersion = APAR_NVCC_VERSION;
#else
constexpr bool kCudaBuilt = false;
constexpr const char* kCudaArchs = "";
constexpr const char* kNvccVersion = "";
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cuda_built"] = kCudaBuilt;
  info["cuda_archs"] = py::str(kCudaArchs).attr("split")();
  info["nvcc_version"] = kNvccVersion;
  info["cpu_level_detected"] = std::string(apar::cpu::cpu_level_name(apar::cpu::detected_cpu_level()));
  return info;
}

std::string take_device_report() {
#if defined(APAR_WITH_CUDA)
  return apar::cuda::take_device_report();
#else
  return "";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Operators of apar (torch.ops.apar) and build information";
  m.def("build_info", &build_info, "What this module was built with, and the CPU level found.");
  m.def(
      "cpu_level", [] { return std::string(apar::cpu::cpu_level_name(apar::cpu::cpu_level())); },
      "Instructions that CPU kernels use: 'portable', 'avx2', 'avx512' or 'avx512bf16'.");
  m.def(
      "limit_cpu_level",
      [](const std::string& name) { apar::cpu::limit_cpu_level(apar::cpu::cpu_level_from_name(name)); },
      py::arg("name"), "Lowers the CPU level for tests and benchmarks; 'avx512bf16' lifts the limit.");
  m.def("take_device_report", &take_device_report, "What CUDA kernels have reported since it was asked last, or ''.");
  apar::bind_forest(m);
}
