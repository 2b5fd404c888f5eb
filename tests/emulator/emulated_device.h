// The functions of csrc/cuda/device.cuh on the emulated machine; included by that header alone.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>

#include "machine.h"

#define APAR_KERNEL(threads, blocks_per_multiprocessor) void
#define APAR_DEVICE inline
#define APAR_GRID_CONSTANT const
#define APAR_HAS_BULK_COPIES 1

namespace apar::cuda {

using emulator::Location;
using emulator::machine;

// ---- where am I

inline int thread_index() { return machine().self().index; }
inline int lane_index() { return thread_index() % kWarpSize; }
inline int warp_index() { return thread_index() / kWarpSize; }
inline int block_index() { return machine().block().index; }
inline int block_size() { return static_cast<int>(machine().block().threads.size()); }
inline int grid_size() { return machine().grid_size(); }

// No tensor: only report() knows it.
inline DeviceReport* device_report() { return reinterpret_cast<DeviceReport*>(uintptr_t{16}); }

// Not checked for races: whichever thread comes last is heard.
inline void report(DeviceReport* target, DeviceFault fault, int index, int value, int largest,
                   const Location& where = Location::current()) {
  if (target != device_report()) throw emulator::Fault("a report goes elsewhere than to device_report()", where);
  machine().report = {fault, index, value, largest};
}

// ---- barriers and warp collectives

inline void synchronize_block(const Location& where = Location::current()) { machine().block_barrier(where); }
inline bool any_in_block(bool predicate, const Location& where = Location::current()) {
  return machine().block_barrier_any(predicate, where);
}
inline void synchronize_warp(const Location& where = Location::current()) { machine().warp_barrier(where); }
inline void synchronize_threads(int id, int threads, const Location& where = Location::current()) {
  machine().named_barrier(id, threads, where);
}

// Gives every lane source(lane, its own argument) of the values of all.
template <typename T, typename Source>
T exchange(const char* operation, T value, int argument, const Location& where, Source&& source) {
  struct Slot {
    T in, out;
    int argument;
  } slot{value, value, argument};
  machine().gather(operation, &slot, where, [&](void** slots) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      auto* mine = static_cast<Slot*>(slots[lane]);
      mine->out = static_cast<Slot*>(slots[source(lane, mine->argument)])->in;
    }
  });
  return slot.out;
}

template <typename T>
T shuffle(T value, int lane, const Location& where = Location::current()) {
  return exchange("shuffle", value, lane, where, [](int, int from) { return from % kWarpSize; });
}
template <typename T>
T shuffle_xor(T value, int mask, const Location& where = Location::current()) {
  return exchange("shuffle_xor", value, mask, where, [](int lane, int bits) { return (lane ^ bits) % kWarpSize; });
}
template <typename T>
T shuffle_up(T value, int distance, const Location& where = Location::current()) {
  return exchange("shuffle_up", value, distance, where, [](int lane, int by) { return lane < by ? lane : lane - by; });
}
template <typename T, typename Combine>
T reduce(const char* operation, T value, const Location& where, Combine&& combine) {
  struct Slot {
    T value;
  } slot{value};
  machine().gather(operation, &slot, where, [&](void** slots) {
    T all = static_cast<Slot*>(slots[0])->value;
    for (int lane = 1; lane < kWarpSize; ++lane) {
      all = combine(all, static_cast<Slot*>(slots[lane])->value);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      static_cast<Slot*>(slots[lane])->value = all;
    }
  });
  return slot.value;
}
inline int reduce_min(int value, const Location& where = Location::current()) {
  return reduce("reduce_min", value, where, [](int a, int b) { return a < b ? a : b; });
}
inline int reduce_max(int value, const Location& where = Location::current()) {
  return reduce("reduce_max", value, where, [](int a, int b) { return a > b ? a : b; });
}
inline uint32_t reduce_or(uint32_t value, const Location& where = Location::current()) {
  return reduce("reduce_or", value, where, [](uint32_t a, uint32_t b) { return a | b; });
}
inline unsigned ballot(bool predicate, const Location& where = Location::current()) {
  unsigned bits = 0;
  struct Slot {
    bool in;
    unsigned* out;
  } slot{predicate, &bits};
  machine().gather("ballot", &slot, where, [](void** slots) {
    unsigned all = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      all |= static_cast<Slot*>(slots[lane])->in ? 1u << lane : 0;
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      *static_cast<Slot*>(slots[lane])->out = all;
    }
  });
  return bits;
}

// ---- memory

template <typename T = unsigned char>
T* shared_memory() {
  return static_cast<T*>(machine().shared_base());
}
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - static_cast<const char*>(machine().shared_base()));
}
inline void* shared_pointer(uint32_t address) { return static_cast<char*>(machine().shared_base()) + address; }
template <typename T>
T load_shared(const T* pointer, const Location& where = Location::current()) {
  T value;
  machine().read_shared(pointer, &value, sizeof(T), where);
  return value;
}
template <typename T>
void store_shared(T* pointer, T value, const Location& where = Location::current()) {
  machine().write_shared(pointer, &value, sizeof(T), where);
}
template <typename T>
T load_global(const T* pointer, const Location& where = Location::current()) {
  T value;
  machine().read_global(pointer, &value, sizeof(T), false, false, where);
  return value;
}
template <typename T>
T load_constant(const T* pointer, const Location& where = Location::current()) {
  T value;
  machine().read_global(pointer, &value, sizeof(T), true, false, where);
  return value;
}
template <typename T>
T load_once(const T* pointer, const Location& where = Location::current()) {
  return load_constant(pointer, where);
}
template <typename T>
T load_from_other_block(const T* pointer, const Location& where = Location::current()) {
  T value;
  machine().read_global(pointer, &value, sizeof(T), false, true, where);
  return value;
}
template <typename T>
void store_global(T* pointer, T value, const Location& where = Location::current()) {
  machine().write_global(pointer, &value, sizeof(T), where);
}

// ---- atomics and fences

inline int atomic_add(int* pointer, int value, const Location& where = Location::current()) {
  return machine().atomic_add(pointer, value, where);
}
inline int atomic_max(int* pointer, int value, const Location& where = Location::current()) {
  return machine().atomic_max(pointer, value, where);
}
inline void fence_device(const Location& where = Location::current()) { machine().fence(where); }

// ---- asynchronous copies

inline uint64_t make_cache_policy(CacheHint hint) { return static_cast<uint64_t>(hint); }
template <int bytes>
void copy_async(uint32_t shared, const void* global, bool valid, uint64_t,
                const Location& where = Location::current()) {
  machine().copy_async(shared_pointer(shared), global, bytes, valid, where);
}
inline void hold_until_copied(uint64_t* barrier, const Location& where = Location::current()) {
  machine().hold_until_copied(barrier, where);
}
inline void commit_copies() { machine().commit_copies(); }
template <int pending>
void wait_copies(const Location& where = Location::current()) {
  machine().wait_copies(pending, where);
}

// ---- bulk copies and their barriers

inline void initialize_barrier(uint64_t* barrier, int arrivals, const Location& where = Location::current()) {
  machine().initialize_barrier(barrier, arrivals, where);
}
inline void fence_barriers(const Location& where = Location::current()) { machine().fence_barriers(where); }
inline void arrive(uint64_t* barrier, const Location& where = Location::current()) {
  machine().arrive(barrier, 0, where);
}
inline void arrive_expecting(uint64_t* barrier, int bytes, const Location& where = Location::current()) {
  machine().arrive(barrier, bytes, where);
}
inline void wait_arrivals(uint64_t* barrier, int phase, const Location& where = Location::current()) {
  machine().wait_arrivals(barrier, phase, where);
}
inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier, uint64_t,
                      const Location& where = Location::current()) {
  machine().copy_bulk(shared, global, bytes, barrier, where);
}
// What the host encodes, in the emulator's own words.
struct EmulatedMap {
  const char* data;
  int64_t rows;
  int32_t columns, box_rows;
};
inline void copy_box(uint32_t shared, const TensorMap* map, int column, int row, uint64_t* barrier, uint64_t,
                     const Location& where = Location::current()) {
  EmulatedMap fields;
  std::memcpy(&fields, map->bytes, sizeof(fields));
  machine().copy_box(shared, fields.data, fields.rows, fields.columns * 2, fields.box_rows, column * 2, row, barrier,
                     where);
}
inline void prefetch_map(const TensorMap*) {}
inline void fence_async_proxy(const Location& where = Location::current()) { machine().fence_async_proxy(where); }

// ---- numbers

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const int exponent = value.bits >> 10 & 31;
  const uint32_t fraction = value.bits & 1023;
  if (exponent == 31) {
    return bits_to_float(sign | 0x7f800000 | fraction << 13);
  }
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return sign != 0 ? -magnitude : magnitude;
}

template <typename T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) {
    return {0x7fff};
  }
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float value) {
  const uint16_t sign = static_cast<uint16_t>(float_to_bits(value) >> 16 & 0x8000);
  if (value != value) {
    return {0x7fff};
  }
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) {
    return {static_cast<uint16_t>(sign | 0x7c00)};
  }
  if (magnitude < 6.103515625e-05f) {  // subnormal: a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24))))};
  }
  const uint32_t bits = float_to_bits(magnitude);
  return {static_cast<uint16_t>(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13))};
}
template <typename T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

inline uint8_t to_e4m3(float value) { return float_to_e4m3(value); }
inline float divide(float a, float b) { return a / b; }

template <typename T>
uint32_t multiply_add_two(uint32_t a, uint32_t b, uint32_t c) {
  const auto one = [&](int shift) {
    const auto number = [&](uint32_t word) { return to_float(T{static_cast<uint16_t>(word >> shift)}); };
    // A product of two 16-bit numbers is exact in float.
    return number(a) * number(b) + number(c);
  };
  return pack<T>(one(0), one(16));
}
inline uint32_t permute_bytes(uint32_t word, uint32_t selector) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = selector >> (4 * i) & 7;
    result |= (from < 4 ? word >> (8 * from) & 0xff : 0) << (8 * i);
  }
  return result;
}

inline float exp2_fast(float value) { return std::exp2(value); }
inline float tanh_exact(float value) { return std::tanh(value); }
inline float log_exact(float value) { return std::log(value); }
inline int count_bits(uint32_t value) { return __builtin_popcount(value); }
inline int count_leading_zeros(int value) { return __builtin_clz(static_cast<unsigned>(value)); }
inline float max_of(float a, float b) { return std::fmax(a, b); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

// ---- matrix instructions, with the fragments described in device.cuh

inline void load_matrices(uint32_t (&registers)[4], uint32_t row, bool transposed, const Location& where) {
  struct Slot {
    const void* row;
    uint32_t* registers;
  } slot{shared_pointer(row), registers};
  machine().gather(transposed ? "load_matrices_x4_transposed" : "load_matrices_x4", &slot, where, [&](void** slots) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t values[8][8];
      void* addresses[8];
      for (int i = 0; i < 8; ++i) {
        const auto* source = static_cast<Slot*>(slots[8 * matrix + i]);
        addresses[i] = const_cast<void*>(source->row);
        machine().read_matrix_row(8 * matrix + i, source->row, values[i], where);
      }
      machine().count_matrix_pass(addresses);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const int first = lane / 4, second = lane % 4 * 2;
        const uint32_t low = transposed ? values[second][first] : values[first][second];
        const uint32_t high = transposed ? values[second + 1][first] : values[first][second + 1];
        static_cast<Slot*>(slots[lane])->registers[matrix] = low | high << 16;
      }
    }
  });
}
inline void load_matrices_x4(uint32_t (&registers)[4], uint32_t row, const Location& where = Location::current()) {
  load_matrices(registers, row, false, where);
}
inline void load_matrices_x4_transposed(uint32_t (&registers)[4], uint32_t row,
                                        const Location& where = Location::current()) {
  load_matrices(registers, row, true, where);
}

template <typename T>
void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         const Location& where = Location::current()) {
  struct Slot {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } slot{c, a, {b0, b1}};
  machine().gather("multiply_accumulate", &slot, where, [](void** slots) {
    ++machine().counters.matrix_instructions;
    const auto half = [](uint32_t word, int high) {
      return to_float(T{static_cast<uint16_t>(high != 0 ? word >> 16 : word)});
    };
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto* mine = static_cast<Slot*>(slots[lane]);
      const int group = lane / 4, pair = lane % 4;
      for (int part = 0; part < 4; ++part) {
        for (int i = 0; i < 2; ++i) {
          a[group + part % 2 * 8][2 * pair + part / 2 * 8 + i] = half(mine->a[part], i);
        }
      }
      for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < 2; ++i) {
          b[2 * pair + 8 * part + i][group] = half(mine->b[part], i);
        }
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      auto* mine = static_cast<Slot*>(slots[lane]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = mine->c[i];
        for (int k = 0; k < 16; ++k) {
          sum += static_cast<double>(a[row][k]) * b[k][column];
        }
        mine->c[i] = static_cast<float>(sum);
      }
    }
  });
}

// ---- the host's side, as in cuda/launch.h

struct DeviceLimits {
  int compute_capability;
  int multiprocessors;
  int shared_bytes_per_block;
};
class DeviceScope {
 public:
  explicit DeviceScope(int) {}
};
inline DeviceLimits device_limits() {
  return {machine().settings.compute_capability, machine().settings.multiprocessors, machine().settings.shared_bytes};
}
template <typename Params>
void allow_shared_bytes(void (*)(Params), int) {}
inline bool make_tensor_map(TensorMap* map, const void* data, int64_t rows, int columns, int box_rows) {
  const EmulatedMap fields{static_cast<const char*>(data), rows, columns, box_rows};
  std::memcpy(map->bytes, &fields, sizeof(fields));
  return true;
}
template <typename Params>
void launch(const char*, void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, void*,
            const Params& params) {
  machine().run(static_cast<int>(blocks), threads, shared_bytes, [&] { kernel(params); });
}

}  // namespace apar::cuda
