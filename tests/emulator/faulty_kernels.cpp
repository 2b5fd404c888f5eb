// Small kernels in pairs: one that is right, and the same with one fault that the emulator has to find.
#include "faulty_kernels.h"

#include <map>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/warpgroup.cuh"

namespace apar::emulator {
namespace {

using namespace apar::cuda;

constexpr int kThreads = 128;

struct Params {
  const int32_t* input;
  int32_t* output;
  int32_t* counter;
};

struct MapParams {
  const int32_t* input;
  int32_t* output;
  TensorMap map;  // of the input as 16 rows of 128 bytes
};

// Reverses 128 numbers through shared memory.
template <bool kBarrier>
void reverse_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index();
  store_shared(shared + thread, load_global(params.input + thread));
  if (kBarrier) synchronize_block();
  store_global(params.output + thread, load_shared(shared + kThreads - 1 - thread));
}

// Each warp reverses its own 32.
template <bool kBarrier>
void reverse_warp_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index(), first = thread / 32 * 32;
  store_shared(shared + thread, load_global(params.input + thread));
  if (kBarrier) synchronize_warp();
  store_global(params.output + thread, load_shared(shared + first + 31 - thread % 32));
}

// Two rounds over one buffer: the second write must wait for the first round's readers.
template <bool kBarrier>
void reuse_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index();
  for (int round = 0; round < 2; ++round) {
    store_shared(shared + thread, load_global(params.input + round * kThreads + thread));
    synchronize_block();
    store_global(params.output + round * kThreads + thread, load_shared(shared + kThreads - 1 - thread));
    if (kBarrier) synchronize_block();
  }
}

// Warps 0 and 1 share a barrier of 64 threads, warps 2 and 3 another; the fault has all of them use the wrong partner.
template <bool kRight>
void named_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index(), pair = thread / 64;
  store_shared(shared + thread, load_global(params.input + thread));
  synchronize_threads(1 + pair, 64);
  const int from = kRight ? pair * 64 + 63 - thread % 64 : kThreads - 1 - thread;
  store_global(params.output + thread, load_shared(shared + from));
}

template <bool kWait>
void copy_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index();
  if (thread < kThreads / 4) copy_async<16>(shared_address(shared + thread * 4), params.input + thread * 4, true, 0);
  commit_copies();
  if (kWait) wait_copies<0>();
  synchronize_block();
  store_global(params.output + thread, load_shared(shared + kThreads - 1 - thread));
  wait_copies<0>();
}

// Waits for the older of two groups and reads the younger.
template <int kPending>
void wrong_group_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index();
  for (int group = 0; group < 2; ++group) {
    if (thread < kThreads / 4)
      copy_async<16>(shared_address(shared + group * kThreads + thread * 4),
                     params.input + group * kThreads + thread * 4, true, 0);
    commit_copies();
  }
  wait_copies<kPending>();
  synchronize_block();
  store_global(params.output + thread, load_shared(shared + kThreads + thread));
  wait_copies<0>();
}

// Bulk copies in two stages: a producer warp fills, the others empty.
enum class BulkFault { kNone, kNoWait, kNoRelease, kWrongBytes };
template <BulkFault kFault>
void bulk_kernel(Params params) {
  constexpr int kNumbers = 32, kRounds = 4, kStages = 2, kConsumers = kThreads - 32;
  int32_t* shared = shared_memory<int32_t>();
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + kStages * kNumbers);
  uint64_t* empty = full + kStages;
  const int thread = thread_index();
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      initialize_barrier(full + stage, 1);
      initialize_barrier(empty + stage, kConsumers / 32);
    }
    fence_barriers();
  }
  synchronize_block();
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % kStages, phase = round / kStages % 2;
    if (thread >= kConsumers) {
      if (thread == kConsumers) {
        if (round >= kStages && kFault != BulkFault::kNoRelease) wait_arrivals(empty + stage, phase ^ 1);
        arrive_expecting(full + stage, kNumbers * 4 * (kFault == BulkFault::kWrongBytes ? 2 : 1));
        copy_bulk(shared + stage * kNumbers, params.input + round * kNumbers, kNumbers * 4, full + stage, 0);
      }
    } else {
      if (kFault != BulkFault::kNoWait) wait_arrivals(full + stage, phase);
      const int32_t number = load_shared(shared + stage * kNumbers + thread % 32);
      if (thread < 32) store_global(params.output + round * kNumbers + thread, number);
      synchronize_warp();
      if (thread % 32 == 0) arrive(empty + stage);
    }
  }
}

// A matrix of 16 rows of 64 16-bit numbers through shared memory in boxes of 8 rows, then the second box once more with
// its upper half written by threads.
enum class BoxFault {
  kNone,
  kNoWait,
  kNoInit,
  kNoBarrierFence,
  kNoAnnouncement,
  kNoProxyFence,
  kMisplaced,
  kNoRelease
};
template <BoxFault kFault>
void box_kernel(MapParams params) {
  constexpr int kRows = 8, kNumbers = kRows * kPanelBytes / 4;
  int32_t* shared = shared_memory<int32_t>();
  const uint32_t address = shared_address(shared) + (kFault == BoxFault::kMisplaced ? 128 : 0);
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + kNumbers + 32);
  const int thread = thread_index();
  if (thread == 0) {
    if (kFault != BoxFault::kNoInit) initialize_barrier(full, 1);
    if (kFault != BoxFault::kNoBarrierFence) fence_barriers();
  }
  synchronize_block();
  for (int box = 0; box < 2; ++box) {
    // Numbers that threads leave there must be out of the copy engine's way.
    if (thread < kNumbers) store_shared(shared + thread, -1);
    if (kFault != BoxFault::kNoProxyFence) fence_async_proxy();
    synchronize_block();
    if (thread == 0) {
      if (kFault != BoxFault::kNoAnnouncement) {
        arrive_expecting(full, kRows * kPanelBytes);
      } else {
        arrive(full);
      }
      copy_box(address, &params.map, 0, box * kRows, full, 0);
    }
    if (kFault != BoxFault::kNoWait) wait_arrivals(full, box);
    const int row = thread / 16;
    for (int half = 0; half < 2; ++half) {
      const int number = thread % 16 * 2 + half, part = number / 4;
      const int32_t value = load_shared(shared + row * 32 + (part ^ row) * 4 + number % 4);
      store_global(params.output + box * kNumbers + row * 32 + number, value);
    }
    if (kFault != BoxFault::kNoRelease) synchronize_block();
  }
}

// Threads fill one half of a stage and the copy engine the other, for one barrier.
enum class MixedFault { kNone, kNoHold, kLateHold };
template <MixedFault kFault>
void mixed_kernel(MapParams params) {
  int32_t* shared = shared_memory<int32_t>();
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + 512);
  const int thread = thread_index();
  if (thread == 0) {
    initialize_barrier(full, 1);
    fence_barriers();
  }
  synchronize_block();
  if (thread < 32) {
    for (int i = thread; i < 64; i += 32) {
      copy_async<16>(shared_address(shared + i * 4), params.input + i * 4, true, 0);
    }
    if (kFault == MixedFault::kNone) hold_until_copied(full);
    synchronize_warp();
    if (thread == 0) {
      arrive_expecting(full, 1024);
      copy_box(shared_address(shared) + 1024, &params.map, 0, 8, full, 0);
    }
    if (kFault == MixedFault::kLateHold) {
      wait_arrivals(full, 0);
      hold_until_copied(full);
    }
  }
  wait_arrivals(full, 0);
  if (thread < 64) {
    store_global(params.output + thread, load_shared(shared + thread * 4));
    store_global(params.output + 64 + thread, load_shared(shared + 256 + thread));
  }
}

// A product of a warpgroup with both sides in shared memory: row r of the left is r 0 0 ..., column n of the right is
// 1 + n % 2, 0, 0, ... Every thread leaves its four numbers of the first tile.
enum class ProductFault { kNone, kNoFence, kNoCommit, kNoWait, kNoProxyFence, kLeftOut, kOverwritten, kOtherProducts };
template <ProductFault kFault>
void product_kernel(Params params) {
  unsigned char* shared = shared_memory();
  const int thread = thread_index();
  for (int side = 0; side < 2; ++side) {
    for (int i = thread; i < 64 * 16; i += kThreads) {
      const int row = i / 16, k = i % 16;
      const float number = k > 0 ? 0.0f : static_cast<float>(side == 0 ? row : 1 + row % 2);
      const int place = side * 64 * kPanelBytes + row * kPanelBytes + ((k / 8 ^ row % 8) * 16) + k % 8 * 2;
      store_shared(reinterpret_cast<uint16_t*>(shared + place), from_float<BFloat16>(number).bits);
    }
  }
  if (kFault != ProductFault::kNoProxyFence) fence_async_proxy();
  synchronize_block();
  const uint64_t left = describe_panels(shared_address(shared), 0),
                 right = describe_panels(shared_address(shared) + 64 * kPanelBytes, 0);
  float c[8][4] = {};
  if (kFault != ProductFault::kLeftOut || thread / 32 != 2) {
    if (kFault != ProductFault::kNoFence) fence_products();
    multiply_shared<BFloat16, true>(c, kFault == ProductFault::kOtherProducts && thread / 32 == 3 ? right : left,
                                    right);
    if (kFault != ProductFault::kNoCommit) commit_products();
    if (kFault == ProductFault::kOverwritten && thread == 77) {
      store_shared(reinterpret_cast<uint16_t*>(shared), uint16_t{0});
    }
    if (kFault != ProductFault::kNoWait) wait_products<0>();
    settle(c);
  }
  for (int i = 0; i < 4; ++i) store_global(params.output + thread * 4 + i, static_cast<int32_t>(c[0][i]));
}

// One with the left side in registers, and the right, 16 rows of 128 columns in two panels, as it stands: its row 5 is
// 0, 1, 2, ... and the left side picks it. Every thread leaves its four numbers of the last tile.
void transposed_product_kernel(Params params) {
  unsigned char* shared = shared_memory();
  const int thread = thread_index();
  constexpr int kPanel = 16 * kPanelBytes;
  for (int i = thread; i < 16 * 128; i += kThreads) {
    const int k = i / 128, column = i % 128, part = column % 64 / 8;
    const int place = column / 64 * kPanel + k * kPanelBytes + (part ^ k % 8) * 16 + column % 8 * 2;
    store_shared(reinterpret_cast<uint16_t*>(shared + place), from_float<BFloat16>(k == 5 ? column : 0).bits);
  }
  fence_async_proxy();
  synchronize_block();
  const uint32_t pick = thread % 4 == 2 ? pack<BFloat16>(0, 1) : 0;  // columns 4 and 5
  const uint32_t a[4] = {pick, pick, 0, 0};
  float c[16][4] = {};
  fence_products();
  multiply_transposed<BFloat16>(c, a, describe_panels(shared_address(shared), kPanel));
  commit_products();
  wait_products<0>();
  settle(c);
  for (int i = 0; i < 4; ++i) store_global(params.output + thread * 4 + i, static_cast<int32_t>(c[15][i]));
}

// Every block leaves a number; the last to arrive adds them up.
enum class MergeFault { kNone, kNoBarrier, kNoFence, kStaleCache };
template <MergeFault kFault>
void last_block_kernel(Params params) {
  int32_t* shared = shared_memory<int32_t>();
  const int thread = thread_index(), blocks = grid_size();
  if (thread == 70) store_global(params.output + block_index(), block_index() + 1);
  if (kFault != MergeFault::kNoBarrier) synchronize_block();
  if (thread == 0) {
    if (kFault != MergeFault::kNoFence) fence_device();
    store_shared(shared, atomic_add(params.counter, 1));
    fence_device();
  }
  synchronize_block();
  if (load_shared(shared) != blocks - 1) return;
  if (thread == 0) {
    int32_t sum = 0;
    for (int block = 0; block < blocks; ++block) {
      sum += kFault == MergeFault::kStaleCache ? load_global(params.output + block)
                                               : load_from_other_block(params.output + block);
    }
    store_global(params.output + 200, sum);
  }
}

template <int kShift>
void copy_all_kernel(Params params) {
  for (int i = thread_index(); i < 512; i += kThreads)
    store_global(params.output + i, load_constant(params.input + i + kShift));
}
void write_input_kernel(Params params) { store_global(const_cast<int32_t*>(params.input), 1); }
void deadlock_kernel(Params params) {
  if (thread_index() < 64) {
    synchronize_block();
  } else {
    synchronize_threads(3, 128);
  }
  store_global(params.output, 1);
}
void diverged_kernel(Params params) {
  int32_t value = thread_index();
  if (lane_index() < 16) {
    value = shuffle(value, 0);
  } else {
    value = shuffle_xor(value, 1);
  }
  store_global(params.output + thread_index(), value);
}
void unwritten_kernel(Params params) { store_global(params.output, load_shared(shared_memory<int32_t>())); }
void past_shared_kernel(Params) { store_shared(shared_memory<int32_t>() + 1024, 1); }

}  // namespace

void run_faulty(const char* name, const int32_t* input, int32_t* output, int32_t* counter) {
  static const std::map<std::string, void (*)(Params)> kKernels = {
      {"reverse", reverse_kernel<true>},
      {"reverse, no barrier", reverse_kernel<false>},
      {"reverse warp", reverse_warp_kernel<true>},
      {"reverse warp, no barrier", reverse_warp_kernel<false>},
      {"reuse", reuse_kernel<true>},
      {"reuse, no barrier", reuse_kernel<false>},
      {"named barriers", named_kernel<true>},
      {"named barriers, wrong partner", named_kernel<false>},
      {"copy", copy_kernel<true>},
      {"copy, no wait", copy_kernel<false>},
      {"two groups", wrong_group_kernel<0>},
      {"two groups, wrong wait", wrong_group_kernel<1>},
      {"bulk", bulk_kernel<BulkFault::kNone>},
      {"bulk, no wait", bulk_kernel<BulkFault::kNoWait>},
      {"bulk, no release", bulk_kernel<BulkFault::kNoRelease>},
      {"bulk, wrong bytes", bulk_kernel<BulkFault::kWrongBytes>},
      {"last block", last_block_kernel<MergeFault::kNone>},
      {"last block, no barrier", last_block_kernel<MergeFault::kNoBarrier>},
      {"last block, no fence", last_block_kernel<MergeFault::kNoFence>},
      {"last block, stale cache", last_block_kernel<MergeFault::kStaleCache>},
      {"copy all", copy_all_kernel<0>},
      {"copy all, off by one", copy_all_kernel<1>},
      {"copy all, off by minus one", copy_all_kernel<-1>},
      {"product", product_kernel<ProductFault::kNone>},
      {"product, no fence", product_kernel<ProductFault::kNoFence>},
      {"product, no commit", product_kernel<ProductFault::kNoCommit>},
      {"product, no wait", product_kernel<ProductFault::kNoWait>},
      {"product, no fence of the proxy", product_kernel<ProductFault::kNoProxyFence>},
      {"product, left out by a warp", product_kernel<ProductFault::kLeftOut>},
      {"product, overwritten", product_kernel<ProductFault::kOverwritten>},
      {"product, another in one warp", product_kernel<ProductFault::kOtherProducts>},
      {"product, transposed", transposed_product_kernel},
      {"write to input", write_input_kernel},
      {"deadlock", deadlock_kernel},
      {"diverged collective", diverged_kernel},
      {"shared memory nobody wrote", unwritten_kernel},
      {"past shared memory", past_shared_kernel},
  };
  static const std::map<std::string, void (*)(MapParams)> kMapKernels = {
      {"boxes", box_kernel<BoxFault::kNone>},
      {"boxes, no wait", box_kernel<BoxFault::kNoWait>},
      {"boxes, no barrier", box_kernel<BoxFault::kNoInit>},
      {"boxes, no fence of the barrier", box_kernel<BoxFault::kNoBarrierFence>},
      {"boxes, not announced", box_kernel<BoxFault::kNoAnnouncement>},
      {"boxes, no fence of the proxy", box_kernel<BoxFault::kNoProxyFence>},
      {"boxes, misplaced", box_kernel<BoxFault::kMisplaced>},
      {"boxes, no release", box_kernel<BoxFault::kNoRelease>},
      {"mixed", mixed_kernel<MixedFault::kNone>},
      {"mixed, no hold", mixed_kernel<MixedFault::kNoHold>},
      {"mixed, late hold", mixed_kernel<MixedFault::kLateHold>},
  };
  if (const auto found = kMapKernels.find(name); found != kMapKernels.end()) {
    MapParams params{input, output, {}};
    make_tensor_map(&params.map, input, 16, kPanelBytes / 2, 8);
    return launch(name, found->second, 1, kThreads, 4096, nullptr, params);
  }
  const auto found = kKernels.find(name);
  if (found == kKernels.end()) throw std::invalid_argument(std::string("no kernel is called ") + name);
  const int blocks = found->first.rfind("last block", 0) == 0 ? 5 : 1;
  const int shared_bytes = found->first.rfind("product", 0) == 0 ? 128 * kPanelBytes : 1024;
  launch(name, found->second, blocks, kThreads, shared_bytes, nullptr, Params{input, output, counter});
}

}  // namespace apar::emulator
