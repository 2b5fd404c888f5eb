// Vector functions and matrix blocks of the attention kernel, over the Vec of the including file's instruction set.
// Include after one of vec_*.h.
#pragma once

#include <cstdint>
#include <utility>

namespace apar::cpu {
namespace {

using Float = Vec::Float;

constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// 2^x with a relative error of 1e-7; 0 for x under -126 (AVX-512: -149), -inf included.
inline Float exp2(Float x) {
  x = Vec::max(Vec::broadcast(-200.0f), x);  // in this order a NaN stays one
  const Float n = Vec::round(x), f = Vec::sub(x, n);
  Float p = Vec::broadcast(1.547587510e-04f);
  p = Vec::fma(p, f, Vec::broadcast(1.340024881e-03f));
  p = Vec::fma(p, f, Vec::broadcast(9.618005506e-03f));
  p = Vec::fma(p, f, Vec::broadcast(5.550327860e-02f));
  p = Vec::fma(p, f, Vec::broadcast(2.402265133e-01f));
  p = Vec::fma(p, f, Vec::broadcast(6.931472062e-01f));
  p = Vec::fma(p, f, Vec::broadcast(1.0f));
  return Vec::scale_by_power(p, n);
}

inline float exp2_scalar(float x) {
  float lanes[Vec::kLanes];
  Vec::store(lanes, exp2(Vec::broadcast(x)));
  return lanes[0];
}

// Relative error 1e-7 near 0 too, where 1 - 2 / (e^2x + 1) would cancel.
inline Float tanh(Float x) {
  const Float a = Vec::abs(x), z = Vec::mul(x, x);
  Float p = Vec::broadcast(-5.717036590e-03f);
  p = Vec::fma(p, z, Vec::broadcast(2.065057903e-02f));
  p = Vec::fma(p, z, Vec::broadcast(-5.374349527e-02f));
  p = Vec::fma(p, z, Vec::broadcast(1.333149125e-01f));
  p = Vec::fma(p, z, Vec::broadcast(-3.333328392e-01f));
  const Float small = Vec::fma(Vec::mul(p, z), x, x);
  const Float limit = Vec::broadcast(10.0f), one = Vec::broadcast(1.0f);
  const Float bounded = Vec::select_less(limit, a, limit, a);
  const Float e = exp2(Vec::mul(bounded, Vec::broadcast(2.0f * kLog2E)));
  const Float large = Vec::sub(one, Vec::div(Vec::broadcast(2.0f), Vec::add(e, one)));
  return Vec::select_less(a, Vec::broadcast(0.625f), small, Vec::copy_sign(large, x));
}

// One register block of a matrix product: c[r][j] = c[r][j] * alpha[r] + sum over k of a[r][k] * b[k][j], or without
// the first term. a[r] and c[r] point to rows; offsets select the block. Each sum is one chain over k in ascending
// order, whatever the shape of the block, so a row's bits do not depend on which rows are beside it.
struct BlockArgs {
  const float* const* a;
  float* const* c;
  const float* alpha;
  const float* b;
  int64_t a_offset, c_offset, count, b_stride;
};

template <class Element, int kRows, int kCols, bool kKeep>
void multiply_block(const BlockArgs& args) {
  Float sums[kRows][kCols];
  const float* a[kRows];
  for (int r = 0; r < kRows; ++r) {
    a[r] = args.a[r] + args.a_offset;
    for (int j = 0; j < kCols; ++j) {
      sums[r][j] = Vec::zero();
      if constexpr (kKeep) {
        const float* c = args.c[r] + args.c_offset + j * Vec::kLanes;
        sums[r][j] = Vec::mul(Vec::load(c), Vec::broadcast(args.alpha[r]));
      }
    }
  }
  const float* b = args.b;
  const int64_t count = args.count, b_stride = args.b_stride;
  for (int64_t k = 0; k < count; ++k, b += b_stride) {
    Float x[kCols];
    for (int j = 0; j < kCols; ++j) x[j] = Vec::load(b + j * Vec::kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Float y = Vec::broadcast(a[r][k]);
      for (int j = 0; j < kCols; ++j) sums[r][j] = Element::multiply_add(y, x[j], sums[r][j]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kCols; ++j) Vec::store(args.c[r] + args.c_offset + j * Vec::kLanes, sums[r][j]);
  }
}

// The register block of some rows, at most Vec::kBlockRows, and some columns, at most Vec::kBlockCols vectors.
template <class Element, bool kKeep>
class MultiplyBlocks {
  using Block = void (*)(const BlockArgs&);
  static constexpr int kRows = Vec::kBlockRows, kCols = Vec::kBlockCols;

  template <int... kIndex>
  static Block choose(int64_t index, std::integer_sequence<int, kIndex...>) {
    static constexpr Block kBlocks[] = {multiply_block<Element, kIndex / kCols + 1, kIndex % kCols + 1, kKeep>...};
    return kBlocks[index];
  }

 public:
  static void run(const BlockArgs& args, int64_t rows, int64_t cols) {
    choose((rows - 1) * kCols + cols - 1, std::make_integer_sequence<int, kRows * kCols>())(args);
  }
};

}  // namespace
}  // namespace apar::cpu
