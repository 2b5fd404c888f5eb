#include "cuda/choose_tokens/choose_tokens.h"

#include "cuda/choose_tokens/draw_numbers.cuh"
#include "cuda/choose_tokens/greedy_tokens.cuh"
#include "cuda/choose_tokens/sample_tokens.cuh"
#include "cuda/launch.h"

namespace apar::cuda {
namespace {

// One block of threads per row.
template <typename Params>
void launch_rows(const char* name, void (*const (&kernels)[3])(Params), int shared_bytes, const Params& params,
                 void* stream) {
  launch(name, kernels[static_cast<int>(params.rows.type)], params.rows.rows, kRowThreads, shared_bytes, stream,
         params);
}

}  // namespace

void greedy_tokens(const GreedyTokensParams& params, int device, void* stream) {
  if (params.rows.rows == 0) return;
  const DeviceScope scope(device);
  launch_rows("greedy_tokens",
              {greedy_tokens_kernel<float>, greedy_tokens_kernel<Half>, greedy_tokens_kernel<BFloat16>},
              kGreedySharedBytes, params, stream);
}

void sample_tokens(const SampleTokensParams& params, int device, void* stream) {
  if (params.rows.rows == 0) return;
  const DeviceScope scope(device);
  launch_rows("sample_tokens",
              {sample_tokens_kernel<float>, sample_tokens_kernel<Half>, sample_tokens_kernel<BFloat16>},
              kSampleSharedBytes, params, stream);
}

void draw_numbers(const DrawNumbersParams& params, int device, void* stream) {
  const DeviceScope scope(device);
  launch("draw_numbers", draw_numbers_kernel, 1, kDrawThreads, 0, stream, params);
}

}  // namespace apar::cuda
