#include <numeric>
#include <random>

#include "check.h"
#include "cpu/append_kv.h"

namespace {

using apar::AppendKvParams;

// Random sizes, strides wider than the data, odd head widths; every byte of both caches is compared.
void append_random_rows(unsigned seed, const apar::cpu::ParallelFor& parallel_for) {
  std::mt19937 random(seed);
  const auto below = [&random](int64_t bound) { return static_cast<int64_t>(random() % bound); };
  const int64_t rows = below(40), heads = 1 + below(5), page_size = 1 + below(20), num_pages = 1 + below(9);
  const int64_t head_bytes = 1 + below(67), head_stride = head_bytes + below(3), row_stride = heads * head_stride;
  const int64_t num_slots = num_pages * page_size;

  std::vector<char> k(rows * row_stride), v(rows * row_stride);
  for (char& byte : k) byte = static_cast<char>(random());
  for (char& byte : v) byte = static_cast<char>(random());
  std::vector<int32_t> all(num_slots);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  std::vector<int32_t> slots(rows);
  for (int64_t row = 0; row < rows; ++row) slots[row] = row < num_slots && below(4) ? all[row] : -1;
  EXPECT(apar::cpu::find_bad_slot(slots.data(), rows, num_slots) == -1);

  std::vector<char> k_cache(num_slots * heads * head_bytes, 'k'), v_cache(k_cache.size(), 'v');
  std::vector<char> k_expected = k_cache, v_expected = v_cache;
  for (int64_t row = 0; row < rows; ++row) {
    if (slots[row] < 0) continue;
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t byte = 0; byte < head_bytes; ++byte) {
        const int64_t page = slots[row] / page_size, offset = slots[row] % page_size;
        const int64_t target = ((page * heads + head) * page_size + offset) * head_bytes + byte;
        const int64_t source = row * row_stride + head * head_stride + byte;
        k_expected[target] = k[source];
        v_expected[target] = v[source];
      }
    }
  }
  apar::cpu::append_kv({.k = k.data(),
                        .v = v.data(),
                        .k_cache = k_cache.data(),
                        .v_cache = v_cache.data(),
                        .slots = slots.data(),
                        .report = nullptr,
                        .k_scale = nullptr,
                        .v_scale = nullptr,
                        .rows = rows,
                        .num_kv_heads = heads,
                        .head_dim = head_bytes,
                        .num_slots = num_slots,
                        .page_size = page_size,
                        .head_bytes = head_bytes,
                        .k_row_stride_bytes = row_stride,
                        .k_head_stride_bytes = head_stride,
                        .v_row_stride_bytes = row_stride,
                        .v_head_stride_bytes = head_stride,
                        .conversion = apar::KvConversion::kNone},
                       parallel_for);
  EXPECT(k_cache == k_expected);
  EXPECT(v_cache == v_expected);
}

}  // namespace

TEST(append_kv_serial) {
  for (unsigned seed = 0; seed < 300; ++seed) append_random_rows(seed, apar::test::serial);
}

TEST(append_kv_threads) {
  for (unsigned seed = 0; seed < 100; ++seed) append_random_rows(seed, apar::test::threads);
}

TEST(append_kv_finds_bad_slots) {
  const std::vector<int32_t> slots = {0, -1, 31, 32, -2};
  EXPECT(apar::cpu::find_bad_slot(slots.data(), 3, 32) == -1);
  EXPECT(apar::cpu::find_bad_slot(slots.data(), 5, 32) == 3);
  EXPECT(apar::cpu::find_bad_slot(slots.data() + 4, 1, 32) == 0);
}
