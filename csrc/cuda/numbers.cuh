// Arrays of int32 in global or in shared memory that read like arrays of the host, so that one piece of code serves
// both, and the rules in csrc/core serve the device. Every access goes through device.cuh.
#pragma once

#include "cuda/device.cuh"

namespace apar::cuda {

struct GlobalInts {
  int32_t* pointer = nullptr;

  class Number {
   public:
    APAR_DEVICE explicit Number(int32_t* at) : at_(at) {}
    Number(const Number&) = default;
    APAR_DEVICE operator int32_t() const { return load_global(at_); }
    APAR_DEVICE void operator=(int32_t value) const { store_global(at_, value); }
    APAR_DEVICE void operator=(const Number& other) const { store_global(at_, static_cast<int32_t>(other)); }

   private:
    int32_t* at_;
  };

  APAR_DEVICE Number operator[](int64_t i) const { return Number(pointer + i); }
  APAR_DEVICE GlobalInts from(int64_t i) const { return {pointer + i}; }
};

APAR_DEVICE int32_t* address_of(const GlobalInts& numbers) { return numbers.pointer; }

struct SharedInts {
  int32_t* pointer = nullptr;

  class Number {
   public:
    APAR_DEVICE explicit Number(int32_t* at) : at_(at) {}
    Number(const Number&) = default;
    APAR_DEVICE operator int32_t() const { return load_shared(at_); }
    APAR_DEVICE void operator=(int32_t value) const { store_shared(at_, value); }
    APAR_DEVICE void operator=(const Number& other) const { store_shared(at_, static_cast<int32_t>(other)); }

   private:
    int32_t* at_;
  };

  APAR_DEVICE Number operator[](int64_t i) const { return Number(pointer + i); }
  APAR_DEVICE SharedInts from(int64_t i) const { return {pointer + i}; }
};

// Hands out parts of an array.
template <class Ints>
struct Arena {
  Ints left;
  APAR_DEVICE Ints take(int64_t count) {
    const Ints part = left;
    left = left.from(count);
    return part;
  }
};

}  // namespace apar::cuda
