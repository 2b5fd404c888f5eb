#include <random>

#include "check.h"
#include "cpu/choose_tokens.h"

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
  const apar::LogitRows given = {.logits = logits.data(),
                                 .may_fork = may_fork.data(),
                                 .rows = rows,
                                 .columns = columns,
                                 .row_stride = stride,
                                 .fork_token = fork_token,
                                 .child_token = child_token,
                                 .type = apar::LogitType::kFloat32};
  apar::cpu::greedy_tokens({.rows = given, .tokens = tokens.data()}, parallel_for);
  EXPECT(tokens == expected);

  // With one token left, sampling has no choice; with more, it gives one of those that are allowed.
  std::vector<uint64_t> numbers(rows);
  for (uint64_t& number : numbers) number = uint64_t{random()} << 32 | random();
  apar::SampleTokensParams params = {.rows = given,
                                     .numbers = numbers.data(),
                                     .tokens = tokens.data(),
                                     .factor = 0.01f * static_cast<float>(1 + random() % 300),
                                     .top_k = 0,
                                     .top_p = 1};
  apar::cpu::sample_tokens(params, parallel_for);
  EXPECT(tokens == expected);
  params.top_k = random() % 40;
  params.top_p = random() % 2 ? 0 : uint64_t{random()} << 32;
  apar::cpu::sample_tokens(params, parallel_for);
  for (int64_t row = 0; row < rows; ++row) {
    EXPECT((tokens[row] < 0) == (expected[row] < 0));
    EXPECT(tokens[row] < 0 || (tokens[row] != child_token && (tokens[row] != fork_token || may_fork[row])));
  }
}

}  // namespace

TEST(choose_tokens) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    choose_in_random_rows(seed, seed % 4 ? apar::test::serial : apar::test::threads);
  }
}
