#include "cuda/tree_attention/tree_attention.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "cuda/launch.h"
#include "cuda/tree_attention/arguments.cuh"
#include "cuda/tree_attention/hopper/arguments.cuh"
#include "cuda/tree_attention/plain_kernel.cuh"

namespace apar::cuda {
namespace {

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("tree_attention: " + text); }

// The environment can ask for a family of kernels, to compare them on one device.
enum class Family { kBest, kPortable, kBulk, kWarpgroup };
Family family_asked_for() {
  const char* value = std::getenv("APAR_TREE_ATTENTION");
  const std::string_view name = value == nullptr ? "" : value;
  if (name.empty() || name == "best") return Family::kBest;
  if (name == "portable") return Family::kPortable;
  if (name == "bulk") return Family::kBulk;
  if (name == "warpgroup") return Family::kWarpgroup;
  fail("the environment variable APAR_TREE_ATTENTION is " + std::string(name) +
       ", expected best, portable, bulk or warpgroup");
}

// False: this build, device or size needs the portable kernels.
template <typename T, typename Kv>
bool launch_on_hopper([[maybe_unused]] const TreeAttentionArguments& arguments, [[maybe_unused]] const WorkInput& input,
                      [[maybe_unused]] void* stream) {
  const Family family = family_asked_for();
#if defined(APAR_WITH_HOPPER)
  if (device_limits().compute_capability != 90 || family == Family::kPortable) return false;
  // Whether a row is in company enough for 128 packed rows depends on the batch, and nobody has promised that the two
  // kinds of products round alike.
  const bool warpgroups = family == Family::kWarpgroup || (family == Family::kBest && input.batch_invariant == 0);
  const auto launch = [&]<int kHeadDim>() {
    if constexpr (has_panels<Kv>(kHeadDim)) {
      return launch_bulk_attention<T, Kv, kHeadDim>(arguments, warpgroups, input.packed_rows, input.target_items,
                                                    stream);
    } else {
      return false;
    }
  };
  switch (arguments.params.head_dim) {
    case 64:
      return launch.template operator()<64>();
    case 128:
      return launch.template operator()<128>();
    case 256:
      return launch.template operator()<256>();
    default:
      return false;
  }
#else
  (void)family;
  return false;
#endif
}

template <typename T, typename Kv>
void launch_head_dim(const TreeAttentionArguments& arguments, const WorkInput& input, void* stream) {
  if (launch_on_hopper<T, Kv>(arguments, input, stream)) return;
  const int packed_rows = input.packed_rows, bins = input.target_items;
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
  const TreeAttentionArguments arguments{params, make_score_scale(params.scale, params.softcap), {}, 1};
  const bool is_float8 = kv_element == Element::kFloat8;
  switch (element) {
    case Element::kFloat16:
      return is_float8 ? launch_head_dim<Half, Float8>(arguments, input, stream)
                       : launch_head_dim<Half, Half>(arguments, input, stream);
    case Element::kBFloat16:
      return is_float8 ? launch_head_dim<BFloat16, Float8>(arguments, input, stream)
                       : launch_head_dim<BFloat16, BFloat16>(arguments, input, stream);
    default:
      return is_float8 ? launch_plain<Float8>(arguments, input.packed_rows, input.target_items, stream)
                       : launch_plain<float>(arguments, input.packed_rows, input.target_items, stream);
  }
}

}  // namespace apar::cuda
