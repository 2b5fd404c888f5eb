// How the attention kernel reads and writes KV of each type. Include after one of vec_*.h.
//
// An element type has kPacked = false where keys, values and probabilities are widened to fp32 for the matrix products,
// and true where pairs of them stay together in 32-bit words for a dot-product instruction.
#pragma once

#include <cstdint>

namespace apar::cpu {
namespace {

struct Float32Element {
  using Storage = float;
  static constexpr bool kPacked = false;
  static Vec::Float load(const Storage* p) { return Vec::load(p); }
  static void store(Storage* p, Vec::Float x) { Vec::store(p, x); }
  static Vec::Float multiply_add(Vec::Float a, Vec::Float b, Vec::Float c) { return Vec::fma(a, b, c); }
};

struct Float16Element {
  using Storage = uint16_t;
  static constexpr bool kPacked = false;
  static Vec::Float load(const Storage* p) { return Vec::load_f16(p); }
  static void store(Storage* p, Vec::Float x) { Vec::store_f16(p, x); }
  static Vec::Float multiply_add(Vec::Float a, Vec::Float b, Vec::Float c) { return Vec::fma(a, b, c); }
};

struct BFloat16Element {
  using Storage = uint16_t;
  static constexpr bool kPacked = false;
  static Vec::Float load(const Storage* p) { return Vec::load_bf16(p); }
  static void store(Storage* p, Vec::Float x) { Vec::store_bf16(p, x); }
  static Vec::Float multiply_add(Vec::Float a, Vec::Float b, Vec::Float c) { return Vec::fma(a, b, c); }
};

// e4m3, a type of caches; queries and outputs are of one of the types above.
struct Float8Element {
  using Storage = uint8_t;
  static constexpr bool kPacked = false;
  static Vec::Float load(const Storage* p) { return Vec::load_e4m3(p); }
  static Vec::Float multiply_add(Vec::Float a, Vec::Float b, Vec::Float c) { return Vec::fma(a, b, c); }
};

}  // namespace
}  // namespace apar::cpu
