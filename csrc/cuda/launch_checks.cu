// What is checked before every launch, without waiting for the device.
#if !defined(APAR_EMULATED_DEVICE)

#include <array>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/capability.h"
#include "cuda/device_errors.h"
#include "cuda/launch.h"

namespace apar::cuda {
namespace {

// Host memory that every device writes to; it lives as long as the process.
DeviceReport* allocate_report() {
  // Legal while a graph is captured, too: nothing of it goes into the graph.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, sizeof(DeviceReport), cudaHostAllocPortable | cudaHostAllocMapped);
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  check_cuda(error, "cudaHostAlloc");
  std::memset(memory, 0, sizeof(DeviceReport));
  return static_cast<DeviceReport*>(memory);
}

std::atomic<DeviceReport*> allocated_report{nullptr};

void check_capability(const char* name) {
  constexpr int kMaxDevices = 64;
  static std::array<std::atomic<bool>, kMaxDevices> known_good{};
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  if (device < kMaxDevices && known_good[device]) return;
  const int capability = device_limits().compute_capability;
  if (!runs_on(APAR_CUDA_ARCHS, capability)) {
    throw std::invalid_argument(
        std::string(name) + ": the device has compute capability " + capability_text(capability) +
        ", expected one of those that the kernels are built for: " + supported_text(APAR_CUDA_ARCHS));
  }
  if (device < kMaxDevices) known_good[device] = true;
}

}  // namespace

DeviceReport* device_report() {
  static DeviceReport* const report = allocate_report();
  allocated_report = report;
  void* address = nullptr;
  check_cuda(cudaHostGetDevicePointer(&address, report, 0), "cudaHostGetDevicePointer");
  return static_cast<DeviceReport*>(address);
}

std::string take_device_report() {
  DeviceReport* const report = allocated_report;
  if (report == nullptr) return "";
  const volatile DeviceFault& fault = report->fault;
  if (fault == DeviceFault::kNone) return "";
  const DeviceReport copy = *report;
  std::memset(report, 0, sizeof(DeviceReport));
  return report_text(copy);
}

void check_before_launch(const char* name) {
  if (const std::string text = take_device_report(); !text.empty()) throw std::invalid_argument(text);
  check_capability(name);
}

}  // namespace apar::cuda

#endif
