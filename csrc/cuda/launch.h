// Host side of launches: every CUDA call is checked, and the device of the tensors is made current for its time.
#pragma once

#if defined(APAR_EMULATED_DEVICE)

#include "cuda/device.cuh"

#else

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace apar::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  // A destructor must not throw; the next checked call reports what went wrong.
  ~DeviceScope() { (void)cudaSetDevice(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
};

struct DeviceLimits {
  int compute_capability;  // 10 * major + minor
  int multiprocessors;
  int shared_bytes_per_block;
};

// Of the current device.
inline DeviceLimits device_limits() {
  int device = 0, major = 0, minor = 0;
  DeviceLimits limits{};
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  for (const auto& [value, attribute] : {std::pair<int*, cudaDeviceAttr>{&major, cudaDevAttrComputeCapabilityMajor},
                                         {&minor, cudaDevAttrComputeCapabilityMinor},
                                         {&limits.multiprocessors, cudaDevAttrMultiProcessorCount},
                                         {&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin}}) {
    check_cuda(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
  }
  limits.compute_capability = 10 * major + minor;
  return limits;
}

// Allows the kernel its shared memory, on the current device.
template <typename Params>
void allow_shared_bytes(void (*kernel)(Params), int shared_bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
             "cudaFuncSetAttribute");
}

template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, void* stream,
            const Params& params) {
  void* arguments[] = {const_cast<Params*>(&params)};
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments,
                              static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)),
             name);
}

}  // namespace apar::cuda

#endif
