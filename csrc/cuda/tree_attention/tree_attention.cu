#include "cuda/tree_attention/tree_attention.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/hopper/arguments.cuh"
#include "cuda/tree_attention/plain_kernel.cuh"

namespace apar::cuda {
namespace {

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("tree_attention: " + text); }

// The environment can ask for a family of kernels, to compare them on one device.
enum class Family { kBest, kPortable };
Family family_asked_for() {
  const char* value = std::getenv("APAR_TREE_ATTENTION");
  const std::string_view name = value == nullptr ? "" : value;
  if (name.empty() || name == "best") return Family::kBest;
  if (name == "portable") return Family::kPortable;
  fail("the environment variable APAR_TREE_ATTENTION is " + std::string(name) + ", expected best or portable");
}

// False: this build, device or size needs the portable kernels.
template <typename T>
bool launch_on_hopper([[maybe_unused]] const TreeAttentionArguments& arguments, [[maybe_unused]] int packed_rows,
                      [[maybe_unused]] int bins, [[maybe_unused]] void* stream) {
#if defined(APAR_WITH_HOPPER)
  if (device_limits().compute_capability != 90 || family_asked_for() == Family::kPortable) return false;
  switch (arguments.params.head_dim) {
    case 64:
      return launch_bulk_attention<T, 64>(arguments, packed_rows, bins, stream);
    case 128:
      return launch_bulk_attention<T, 128>(arguments, packed_rows, bins, stream);
    case 256:
      return launch_bulk_attention<T, 256>(arguments, packed_rows, bins, stream);
    default:
      return false;
  }
#else
  return false;
#endif
}

template <typename T, typename Kv>
void launch_head_dim(const TreeAttentionArguments& arguments, int packed_rows, int bins, void* stream) {
  if constexpr (std::is_same_v<T, Kv>) {
    if (launch_on_hopper<T>(arguments, packed_rows, bins, stream)) return;
  }
  switch (arguments.params.head_dim) {
    case 64:
      return launch_tree_attention<T, Kv, 64>(arguments, packed_rows, bins, stream);
    case 80:
      return launch_tree_attention<T, Kv, 80>(arguments, packed_rows, bins, stream);
    case 96:
      return launch_tree_attention<T, Kv, 96>(arguments, packed_rows, bins, stream);
    case 128:
      return launch_tree_attention<T, Kv, 128>(arguments, packed_rows, bins, stream);
    case 256:
      return launch_tree_attention<T, Kv, 256>(arguments, packed_rows, bins, stream);
    default:
      fail("q has head_dim " + std::to_string(arguments.params.head_dim) +
           ", expected one of 64, 80, 96, 128, 256 on a CUDA device");
  }
}

template <typename Kv>
void launch_plain(TreeAttentionArguments arguments, int packed_rows, int bins, void* stream) {
  const TreeAttentionParams& params = arguments.params;
  if (params.head_dim > kPlainMaxHeadDim) {
    fail("q has head_dim " + std::to_string(params.head_dim) + ", expected at most " +
         std::to_string(kPlainMaxHeadDim));
  }
  arguments.shared = {kPlainRows, kPlainRows, 1};
  arguments.parts = packed_rows / kPlainRows;
  const int shared_bytes = plain_shared_bytes(params.head_dim);
  allow_shared_bytes(plain_attention_kernel<Kv>, shared_bytes);
  launch("tree_attention", plain_attention_kernel<Kv>,
         static_cast<int64_t>(bins) * arguments.parts * params.num_kv_heads, kPlainThreads, shared_bytes, stream,
         arguments);
}

}  // namespace

int multiprocessors_of(int device) {
  const DeviceScope scope(device);
  return device_limits().multiprocessors;
}

void tree_attention(TreeAttentionParams params, Element element, Element kv_element, int32_t* work,
                    const WorkInput& input, int device, void* stream) {
  if (params.num_rows == 0 || params.num_kv_heads == 0) return;
  const DeviceScope scope(device);
  const WorkLayout layout = work_layout(params.num_rows, params.num_kv_heads, params.group_size, input);
  params.report = device_report();
  params.work = reinterpret_cast<const WorkHeader*>(work);
  params.bin_begin = work + layout.bin_begin;
  params.row_begin = work + layout.row_begin;
  params.arrivals = work + layout.arrivals;
  params.items = reinterpret_cast<const WorkItem*>(work + layout.items);
  params.row_ranges = reinterpret_cast<const RowRange*>(work + layout.row_ranges);
  const int packed_rows = input.packed_rows;
  const int bins = input.target_items;
  const TreeAttentionArguments arguments{params, make_score_scale(params.scale, params.softcap), {}, 1};
  const bool is_float8 = kv_element == Element::kFloat8;
  switch (element) {
    case Element::kFloat16:
      return is_float8 ? launch_head_dim<Half, Float8>(arguments, packed_rows, bins, stream)
                       : launch_head_dim<Half, Half>(arguments, packed_rows, bins, stream);
    case Element::kBFloat16:
      return is_float8 ? launch_head_dim<BFloat16, Float8>(arguments, packed_rows, bins, stream)
                       : launch_head_dim<BFloat16, BFloat16>(arguments, packed_rows, bins, stream);
    default:
      return is_float8 ? launch_plain<Float8>(arguments, packed_rows, bins, stream)
                       : launch_plain<float>(arguments, packed_rows, bins, stream);
  }
}

}  // namespace apar::cuda
