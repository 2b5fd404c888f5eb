// make_plan and tree_attention over random ranges, on every CPU level of the machine. Buffers have exactly the sizes
// they need, unread KV is NaN and unused page-table entries are impossible, so that the sanitizers see every step too
// far.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "core/numbers.h"
#include "core/plan.h"
#include "cpu/tree_attention.h"

namespace {

using apar::cpu::CpuLevel;
using apar::cpu::ElementType;

// Encodes numbers that the type holds exactly.
void encode(float value, ElementType type, char* target) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (type == ElementType::kFloat32) {
    std::memcpy(target, &bits, 4);
    return;
  }
  auto half = static_cast<uint16_t>(bits >> 16);
  if (type == ElementType::kFloat16) {
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    if (std::isnan(value)) {
      half = 0x7e00;
    } else if (value == 0) {
      half = sign;
    } else {
      const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127 + 15;
      half = static_cast<uint16_t>(sign | exponent << 10 | ((bits >> 13) & 0x3ff));
    }
  }
  std::memcpy(target, &half, 2);
}

double decode(const char* source, ElementType type) {
  if (type == ElementType::kFloat32) {
    float value;
    std::memcpy(&value, source, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, source, 2);
  if (type == ElementType::kBFloat16) return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
  const int exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -size : size;
}

struct Case {
  ElementType type, kv_type;
  int64_t element_bytes;
  int32_t rows, group, kv_heads, head_dim, page_size, streams, max_pages, num_pages;
  float softcap;
  bool with_sinks;
  std::vector<int32_t> page_table, row_indptr, range_stream, range_begin, range_end, schedule;
  std::vector<float> q, k, v, sinks;  // k, v: the caches
  std::vector<char> q_bytes, k_bytes, v_bytes;

  int64_t cache_index(int32_t stream, int32_t entry, int32_t head) const {
    const int64_t page = page_table[stream * max_pages + entry / page_size];
    return ((page * kv_heads + head) * page_size + entry % page_size) * head_dim;
  }
};

Case random_case(unsigned seed, ElementType type, ElementType kv_type, bool large) {
  std::mt19937 random(seed);
  const auto below = [&random](int bound) { return static_cast<int32_t>(random() % static_cast<unsigned>(bound)); };
  Case c{};
  c.type = type;
  c.kv_type = kv_type;
  c.element_bytes = type == ElementType::kFloat32 ? 4 : 2;
  c.rows = below(14);
  c.group = 1 + below(5);
  c.kv_heads = 1 + below(3);
  c.head_dim = std::array{32, 64, 80, 96, 128, 256}[below(large ? 2 : 6)];
  c.page_size = 8 << below(5);
  c.streams = 1 + below(6);
  c.softcap = below(3) == 0 ? 2.5f : 0.0f;
  c.with_sinks = below(3) == 0;

  std::vector<int32_t> lengths(c.streams);
  for (int32_t& length : lengths) length = below(260);
  if (large) lengths[0] = 9000 + below(500);
  c.max_pages = (*std::max_element(lengths.begin(), lengths.end()) + c.page_size - 1) / c.page_size + below(2);
  c.page_table.assign(static_cast<size_t>(c.streams) * c.max_pages, std::numeric_limits<int32_t>::max());
  std::vector<int32_t> pages;
  for (int32_t s = 0; s < c.streams; ++s) {
    for (int32_t i = 0; i * c.page_size < lengths[s]; ++i) pages.push_back(static_cast<int32_t>(pages.size()));
  }
  c.num_pages = static_cast<int32_t>(pages.size());
  std::shuffle(pages.begin(), pages.end(), random);
  for (int32_t s = 0; s < c.streams; ++s) {
    for (int32_t i = 0; i * c.page_size < lengths[s]; ++i) {
      c.page_table[s * c.max_pages + i] = pages.back();
      pages.pop_back();
    }
  }

  c.row_indptr = {0};
  for (int32_t row = 0; row < c.rows; ++row) {
    for (int32_t i = below(4); i > 0; --i) {
      const int32_t stream = below(3) ? 0 : below(c.streams);
      const int32_t begin = below(3) ? 0 : below(lengths[stream] + 1);
      c.range_stream.push_back(stream);
      c.range_begin.push_back(begin);
      c.range_end.push_back(begin + below(lengths[stream] - begin + 1));
    }
    c.row_indptr.push_back(static_cast<int32_t>(c.range_stream.size()));
  }

  // Multiples of 1/16 up to 2: exact in every type but e4m3.
  const auto number = [&] { return static_cast<float>(below(65) - 32) / 16; };
  c.q.resize(static_cast<size_t>(c.rows) * c.kv_heads * c.group * c.head_dim);
  for (float& x : c.q) x = number();
  const size_t cache_size = static_cast<size_t>(c.num_pages) * c.kv_heads * c.page_size * c.head_dim;
  c.k.assign(cache_size, std::numeric_limits<float>::quiet_NaN());
  c.v = c.k;
  for (size_t i = 0; i < c.range_stream.size(); ++i) {
    for (int32_t entry = c.range_begin[i]; entry < c.range_end[i]; ++entry) {
      for (int32_t head = 0; head < c.kv_heads; ++head) {
        const int64_t at = c.cache_index(c.range_stream[i], entry, head);
        for (int32_t d = 0; d < c.head_dim && std::isnan(c.k[at + d]); ++d) c.k[at + d] = number();
        for (int32_t d = 0; d < c.head_dim && std::isnan(c.v[at + d]); ++d) c.v[at + d] = number();
      }
    }
  }
  if (c.with_sinks) {
    for (int32_t head = 0; head < c.kv_heads * c.group; ++head) c.sinks.push_back(number());
  }
  const auto to_bytes = [&c](std::vector<float>& values, ElementType type) {
    if (type == ElementType::kFloat8) {
      std::vector<char> codes;
      for (float& value : values) {
        codes.push_back(static_cast<char>(apar::float_to_e4m3(value)));
        value = apar::e4m3_to_float(static_cast<uint8_t>(codes.back()));
      }
      return codes;
    }
    std::vector<char> bytes(values.size() * c.element_bytes);
    for (size_t i = 0; i < values.size(); ++i) encode(values[i], type, &bytes[i * c.element_bytes]);
    return bytes;
  };
  c.q_bytes = to_bytes(c.q, type);
  c.k_bytes = to_bytes(c.k, kv_type);
  c.v_bytes = to_bytes(c.v, kv_type);
  return c;
}

void make_plan(Case& c) {
  const apar::PlanInput input = {.num_rows = c.rows,
                                 .num_ranges = static_cast<int64_t>(c.range_stream.size()),
                                 .row_indptr = c.row_indptr.data(),
                                 .range_stream = c.range_stream.data(),
                                 .range_begin = c.range_begin.data(),
                                 .range_end = c.range_end.data(),
                                 .num_streams = c.streams,
                                 .max_pages = c.max_pages,
                                 .max_page = c.num_pages - 1,
                                 .num_kv_heads = c.kv_heads,
                                 .group_size = c.group,
                                 .page_size = c.page_size};
  EXPECT(apar::check_plan_input(input).kind == apar::PlanFault::kNone);
  c.schedule.assign(apar::schedule_size(input.num_rows, input.num_ranges), -12345);
  apar::write_plan(input, c.schedule.data());
  int32_t max_page = -1;
  EXPECT(apar::find_pages(c.schedule.data(), c.page_table.data(), max_page).kind == apar::PlanFault::kNone);
  EXPECT(max_page < c.num_pages);
}

struct Result {
  std::vector<char> out;
  std::vector<float> lse;
};

Result run(const Case& c, CpuLevel level, int32_t num_threads, const apar::cpu::ParallelFor& parallel_for) {
  const int64_t heads = c.kv_heads * c.group;
  Result result = {std::vector<char>(c.q_bytes.size(), 'x'), std::vector<float>(c.rows * heads, -77.0f)};
  apar::cpu::tree_attention({.q = c.q_bytes.data(),
                             .k_cache = c.k_bytes.data(),
                             .v_cache = c.v_bytes.data(),
                             .page_table = c.page_table.data(),
                             .schedule = c.schedule.data(),
                             .sinks = c.with_sinks ? c.sinks.data() : nullptr,
                             .out = result.out.data(),
                             .lse = result.lse.data(),
                             .q_row_stride = heads * c.head_dim,
                             .q_head_stride = c.head_dim,
                             .type = c.type,
                             .kv_type = c.kv_type,
                             .head_dim = c.head_dim,
                             .scale = 0.11f,
                             .softcap = c.softcap,
                             .level = level,
                             .num_threads = num_threads},
                            parallel_for);
  return result;
}

// Row by row in double precision.
void expect_right(const Case& c, const Result& result) {
  const double tolerance = c.type == ElementType::kFloat32 ? 2e-5 : c.type == ElementType::kFloat16 ? 4e-3 : 3e-2;
  std::vector<double> scores, expected(c.head_dim);
  for (int32_t row = 0; row < c.rows; ++row) {
    for (int32_t head = 0; head < c.kv_heads * c.group; ++head) {
      const int64_t at = static_cast<int64_t>(row) * c.kv_heads * c.group + head;
      const float* q = &c.q[at * c.head_dim];
      scores.clear();
      double largest = c.with_sinks ? c.sinks[head] : -INFINITY;
      for (int32_t i = c.row_indptr[row]; i < c.row_indptr[row + 1]; ++i) {
        for (int32_t entry = c.range_begin[i]; entry < c.range_end[i]; ++entry) {
          const float* k = &c.k[c.cache_index(c.range_stream[i], entry, head / c.group)];
          double score = 0;
          for (int32_t d = 0; d < c.head_dim; ++d) score += static_cast<double>(q[d]) * k[d];
          score *= 0.11f;
          if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
          scores.push_back(score);
          largest = std::max(largest, score);
        }
      }
      double sum = c.with_sinks ? std::exp(c.sinks[head] - largest) : 0;
      std::fill(expected.begin(), expected.end(), 0.0);
      size_t next = 0;
      for (int32_t i = c.row_indptr[row]; i < c.row_indptr[row + 1]; ++i) {
        for (int32_t entry = c.range_begin[i]; entry < c.range_end[i]; ++entry) {
          const float* v = &c.v[c.cache_index(c.range_stream[i], entry, head / c.group)];
          const double weight = std::exp(scores[next++] - largest);
          sum += weight;
          for (int32_t d = 0; d < c.head_dim; ++d) expected[d] += weight * v[d];
        }
      }
      if (sum == 0) {
        EXPECT(result.lse[at] == -INFINITY);
      } else {
        EXPECT(std::abs(result.lse[at] - (largest + std::log(sum))) < std::min(tolerance, 1e-2));
      }
      for (int32_t d = 0; d < c.head_dim; ++d) {
        const double out = decode(&result.out[(at * c.head_dim + d) * c.element_bytes], c.type);
        EXPECT(std::abs(out - (sum > 0 ? expected[d] / sum : 0)) < tolerance);
      }
    }
  }
}

void attend_random_ranges(unsigned seed, bool large) {
  using enum ElementType;
  for (const auto& [type, kv_type] :
       {std::pair{kFloat32, kFloat32}, {kFloat16, kFloat16}, {kBFloat16, kBFloat16}, {kBFloat16, kFloat8}}) {
    Case c = random_case(seed, type, kv_type, large);
    make_plan(c);
    for (int level = 0; level <= static_cast<int>(apar::cpu::detected_cpu_level()); ++level) {
      const Result alone = run(c, static_cast<CpuLevel>(level), 1, apar::test::serial);
      expect_right(c, alone);
      const Result threaded = run(c, static_cast<CpuLevel>(level), 3, apar::test::threads);
      EXPECT(alone.out == threaded.out);
      EXPECT(std::equal(alone.lse.begin(), alone.lse.end(), threaded.lse.begin()));
    }
  }
}

}  // namespace

TEST(tree_attention_random_ranges) {
  for (unsigned seed = 0; seed < 40; ++seed) attend_random_ranges(seed, /*large=*/false);
}

// Streams of several segments, so that tiles are cut and partial results folded.
TEST(tree_attention_long_streams) {
  for (unsigned seed = 0; seed < 3; ++seed) attend_random_ranges(seed, /*large=*/true);
}

TEST(plan_finds_faults) {
  const std::vector<int32_t> indptr = {0, 1, 2};
  const auto fault = [&](std::vector<int32_t> rows, std::vector<int32_t> stream, std::vector<int32_t> begin,
                         std::vector<int32_t> end) {
    return apar::check_plan_input({.num_rows = 2,
                                   .num_ranges = 2,
                                   .row_indptr = rows.data(),
                                   .range_stream = stream.data(),
                                   .range_begin = begin.data(),
                                   .range_end = end.data(),
                                   .num_streams = 2,
                                   .max_pages = 3,
                                   .page_size = 8})
        .kind;
  };
  using apar::PlanFault;
  EXPECT(fault(indptr, {0, 1}, {0, 5}, {24, 5}) == PlanFault::kNone);
  EXPECT(fault({1, 1, 2}, {0, 1}, {0, 0}, {1, 1}) == PlanFault::kIndptrStart);
  EXPECT(fault({0, 2, 1}, {0, 1}, {0, 0}, {1, 1}) == PlanFault::kIndptrOrder);
  EXPECT(fault({0, 2, 3}, {0, 1}, {0, 0}, {1, 1}) == PlanFault::kIndptrEnd);
  EXPECT(fault(indptr, {0, 2}, {0, 0}, {1, 1}) == PlanFault::kStream);
  EXPECT(fault(indptr, {0, -1}, {0, 0}, {1, 1}) == PlanFault::kStream);
  EXPECT(fault(indptr, {0, 1}, {0, -1}, {1, 1}) == PlanFault::kNegative);
  EXPECT(fault(indptr, {0, 1}, {0, 2}, {1, 1}) == PlanFault::kOrder);
  EXPECT(fault(indptr, {0, 1}, {0, 0}, {1, 25}) == PlanFault::kPastTable);
}
