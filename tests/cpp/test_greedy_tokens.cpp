#include <random>

#include "check.h"
#include "cpu/greedy_tokens.h"

namespace {

void choose_in_random_rows(unsigned seed, const apar::cpu::ParallelFor& parallel_for) {
  std::mt19937 random(seed);
  const int64_t rows = random() % 6, columns = 1 + random() % 2500, stride = columns + random() % 3;
  const int64_t fork_token = static_cast<int64_t>(random() % (columns + 1)) - 1;
  const int64_t child_token = static_cast<int64_t>(random() % (columns + 1)) - 1;
  std::vector<float> logits(rows * stride);
  std::vector<int32_t> may_fork(rows), tokens(rows, -7), expected(rows, -1);
  for (float& logit : logits) logit = static_cast<float>(random() % 1000);
  for (int64_t row = 0; row < rows; ++row) {
    may_fork[row] = random() % 2;
    for (int64_t column = 0; column < columns; ++column) {
      if (column == child_token || (column == fork_token && !may_fork[row])) continue;
      const float* values = logits.data() + row * stride;
      if (expected[row] < 0 || values[column] > values[expected[row]]) expected[row] = static_cast<int32_t>(column);
    }
  }
  apar::cpu::greedy_tokens({.logits = logits.data(),
                            .may_fork = may_fork.data(),
                            .tokens = tokens.data(),
                            .rows = rows,
                            .columns = columns,
                            .row_stride = stride,
                            .is_bfloat16 = false,
                            .fork_token = fork_token,
                            .child_token = child_token},
                           parallel_for);
  EXPECT(tokens == expected);
}

}  // namespace

TEST(greedy_tokens) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    choose_in_random_rows(seed, seed % 4 ? apar::test::serial : apar::test::threads);
  }
}
