// The CUDA stream that torch uses now.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

// Defined in libtorch_cuda, which a CPU-only torch lacks: a weak reference lets one object serve both.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream)
    __attribute__((weak));

namespace apar::ops {

inline void* current_cuda_stream(const torch::stable::Tensor& tensor) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error("this torch is built without CUDA, so it has no CUDA stream");
  }
  void* stream = nullptr;
  // 0 is success; the name of that constant is not the same in every torch.
  if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != 0) {
    throw std::runtime_error("torch gave no current CUDA stream");
  }
  return stream;
}

}  // namespace apar::ops
