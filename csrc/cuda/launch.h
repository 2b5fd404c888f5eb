// Host side of launches: every CUDA call is checked, and the device of the tensors is made current for its time.
#pragma once

#if defined(APAR_EMULATED_DEVICE)

#include "cuda/device.cuh"

#else

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/device.cuh"

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

// Of 16-bit numbers [rows, columns] that follow one another, in boxes of box_rows x 64; the driver function comes from
// the runtime, so nothing is linked against the driver. False: this driver cannot, or the matrix is too large.
inline bool make_tensor_map(TensorMap* map, const void* data, int64_t rows, int columns, int box_rows) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  if (rows < 1 || rows > INT32_MAX - box_rows) return false;  // coordinates are int32, one box past the end included
  static void* const encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    check_cuda(error, "cudaGetDriverEntryPoint(cuTensorMapEncodeTiled)");
    return found == cudaDriverEntryPointSuccess ? function : nullptr;
  }();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {kPanelBytes / 2, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
      reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(data), sizes, strides,
      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(result) + " for " +
                             std::to_string(rows) + " rows of " + std::to_string(columns) + " columns");
  }
  return true;
}

// The place for reports of kernels, as devices know it.
DeviceReport* device_report();
// Throws what an earlier kernel has reported, and where the current device cannot run these kernels.
void check_before_launch(const char* name);

template <typename Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, void* stream,
            const Params& params) {
  check_before_launch(name);
  void* arguments[] = {const_cast<Params*>(&params)};
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments,
                              static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)),
             name);
}

}  // namespace apar::cuda

#endif
