#include <random>

#include "check.h"
#include "cpu/mask_logits.h"

namespace {

template <class Element>
void mask_random_rows(unsigned seed, uint64_t minus_infinity, const apar::cpu::ParallelFor& parallel_for) {
  std::mt19937 random(seed);
  const int64_t rows = random() % 30, vocabulary = 1 + random() % 9, stride = vocabulary + random() % 4;
  const int64_t fork_token = static_cast<int64_t>(random() % (vocabulary + 1)) - 1;
  const int64_t child_token = static_cast<int64_t>(random() % (vocabulary + 1)) - 1;
  std::vector<Element> logits(rows * stride, 1), expected = logits;
  std::vector<int32_t> may_fork(rows);
  for (int64_t row = 0; row < rows; ++row) {
    may_fork[row] = random() % 2;
    if (child_token >= 0) expected[row * stride + child_token] = static_cast<Element>(minus_infinity);
    if (fork_token >= 0 && !may_fork[row]) expected[row * stride + fork_token] = static_cast<Element>(minus_infinity);
  }
  apar::cpu::mask_logits({.logits = logits.data(),
                          .may_fork = may_fork.data(),
                          .rows = rows,
                          .row_stride = stride,
                          .element_bytes = sizeof(Element),
                          .minus_infinity = minus_infinity,
                          .fork_token = fork_token,
                          .child_token = child_token},
                         parallel_for);
  EXPECT(logits == expected);
}

}  // namespace

TEST(mask_logits) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    mask_random_rows<uint16_t>(seed, 0xFC00, apar::test::serial);
    mask_random_rows<uint32_t>(seed, 0xFF800000, apar::test::serial);
    mask_random_rows<uint64_t>(seed, 0xFFF0000000000000, apar::test::serial);
    if (seed < 40) mask_random_rows<uint32_t>(seed, 0xFF800000, apar::test::threads);
  }
}
