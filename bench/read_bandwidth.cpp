// How fast this machine reads memory: several threads, each over its own contiguous part, with nothing done to the data
// but an addition. Compiled by bench/common.py.
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using Lanes = uint64_t __attribute__((vector_size(64), aligned(8)));

void read_part(const char* data, int64_t bytes, uint64_t* result) {
  constexpr int64_t kAhead = 8192;
  Lanes sums[8] = {};
  for (int64_t at = 0; at + 512 <= bytes; at += 512) {
    for (int i = 0; i < 8; ++i) {
      __builtin_prefetch(data + at + 64 * i + kAhead, 0, 2);
      sums[i] += *reinterpret_cast<const Lanes*>(data + at + 64 * i);
    }
  }
  for (const Lanes& sum : sums) {
    for (int i = 0; i < 8; ++i) *result += sum[i];
  }
}

}  // namespace

extern "C" uint64_t read_all(const void* data, int64_t bytes, int64_t threads) {
  std::vector<uint64_t> results(static_cast<size_t>(threads) * 8);
  std::vector<std::thread> pool;
  const int64_t share = bytes / threads / 512 * 512;
  for (int64_t i = 0; i < threads; ++i) {
    pool.emplace_back(read_part, static_cast<const char*>(data) + i * share, share,
                      &results[static_cast<size_t>(i) * 8]);
  }
  for (std::thread& thread : pool) thread.join();
  uint64_t total = 0;
  for (const uint64_t result : results) total += result;
  return total;
}
