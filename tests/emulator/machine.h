// A machine that runs kernels on the host. Every CUDA thread is a fiber; a few blocks are resident at a time and take
// turns at barriers and atomics, in an order drawn from a seed. Pointers that kernels hold are not host addresses
// (dereferencing one crashes): each access comes through the functions below and is checked.
//
// Order of accesses is tracked with logical time. A block's clock ticks at every release (barrier, arrival, fence); an
// access at time r by thread t is ordered before an access of thread u if a release of t later than r has reached u.
// What is not ordered, touches the same bytes and includes a write is a race, whatever order the fibers happened to run
// in.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/device_report.h"

namespace apar::emulator {

using Location = std::source_location;

// Something a kernel did that the card would punish, or worse, would not.
class Fault : public std::runtime_error {
 public:
  Fault(const std::string& what, const Location& where);
};

struct Tensor {
  std::string name;
  unsigned char* data;
  int64_t bytes;
  bool writable;
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  struct Mark {  // the last store to a byte, or atomic operation on it, in this launch
    int32_t block = -1;
    int32_t thread = 0;
    uint32_t time = 0;
    bool atomic = false;
  };
  std::vector<Mark> marks;
};

struct Counters {
  int64_t matrix_instructions = 0;
  int64_t warpgroup_products = 0;  // counted by warps
  int64_t block_barriers = 0;
  // Rows of 16 bytes that matrix loads took from shared memory, by passes of eight, and the passes that bank conflicts
  // cost.
  int64_t matrix_load_passes = 0;
  int64_t matrix_load_conflicts = 0;
  int64_t copies = 0;
  int64_t largest_shared_bytes = 0;
};

struct Settings {
  int multiprocessors = 3;
  int resident_blocks = 3;
  int shared_bytes = 227 * 1024;
  int compute_capability = 80;
  uint64_t seed = 0;
  // Call sites, "file.cuh:line", whose barrier or wait does nothing: planted faults.
  std::set<std::string> dropped_sites;
  // Added to every int32 that kernels load from this tensor: a planted fault.
  std::string shifted_tensor;
  int shift = 0;
};

struct Copy {
  uint32_t shared;
  const unsigned char* source;  // null: zeros
  int bytes;
  Location where;
  bool async_proxy = false;  // by the copy engine
};

struct Block;

struct Thread {
  enum class State { kReady, kWaiting, kPolling, kDone };
  void* stack_pointer = nullptr;
  int index = 0;
  Block* block = nullptr;
  State state = State::kReady;
  Location where;
  // The latest release of every thread of the block (and of its barriers' copies) that has reached this one.
  std::vector<uint32_t> seen;
  // What it had seen when it last fenced the asynchronous proxy, and when it did.
  std::vector<uint32_t> fenced_seen;
  uint32_t fenced_barrier_time = 0;
  std::vector<uint32_t> fence_times;
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
  struct Publication;
  std::shared_ptr<Publication> fenced;                   // what an atomic of this thread publishes
  std::vector<std::shared_ptr<Publication>> unacquired;  // what its atomics have seen and no fence has acquired
};

// Everything a thread knew about its block when it fenced, and what its block had acquired from others.
struct Thread::Publication {
  int block;
  int thread;
  uint32_t time;
  uint32_t barrier_time;
  std::vector<uint32_t> seen;
};

// A matrix product of a warpgroup, one warp's part of it.
struct Product {
  std::vector<float*> accumulators;  // of each lane
  int accumulator_floats = 0;
  std::function<void(const std::vector<float*>&)> run;
};

struct Warp {
  const char* operation = nullptr;
  Location where;
  int arrived = 0;
  void* arguments[32];
  bool products_fenced = false;
  std::vector<Product> open_products;
  std::deque<std::vector<Product>> product_groups;
  std::map<float*, std::vector<float>> accumulators;  // what those under way really hold
  size_t num_products = 0;
};

struct TransactionBarrier {
  int expected = 0;
  int pending = 0;
  int phase = 0;
  int64_t announced_bytes = 0;
  std::vector<Copy> copies;
  std::vector<uint32_t> arriving, completed;
  int owner = 0;        // who initialized it
  bool fenced = false;  // the copy engine sees it initialized
  int copier = 0;       // the index in `seen` that stands for this barrier's copies
};

struct Acquired {
  std::shared_ptr<Thread::Publication> publication;
  int thread;
  uint32_t time;
};

struct Block {
  int index = 0;
  uint32_t clock = 1;
  uint32_t barrier_time = 0;  // of the last barrier of the whole block
  std::vector<unsigned char> shared;
  struct Unit {  // two bytes of shared memory
    int32_t writer = -1;
    uint32_t time = 0;
    uint16_t site = 0;
    bool in_flight = false;
    bool generic = false;  // last written by an ordinary store or cp.async, which the asynchronous proxy does not see
  };
  struct ReadMark {
    uint32_t time = 0;
    uint32_t lanes = 0;
    uint16_t site = 0;
  };
  std::vector<Unit> units;
  std::vector<ReadMark> reads;  // [units, warps]
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  struct StartedProduct {
    uint32_t line;
    uint64_t a, b;
    bool operator==(const StartedProduct&) const = default;
  };
  std::vector<std::vector<StartedProduct>> warpgroups;  // what the four warps of a group must all start
  int alive = 0;
  int at_barrier = 0;
  bool predicate = false, predicate_result = false;
  Location barrier_where;
  struct NamedBarrier {
    int arrived = 0, expected = 0;
    std::vector<int> threads;
  };
  NamedBarrier named[16];
  std::map<uint32_t, TransactionBarrier> barriers;
  std::vector<Acquired> acquired;
};

class Machine {
 public:
  Settings settings;
  Counters counters;
  DeviceReport report{};  // what kernels have told the host

  // The address by which kernels know this memory.
  uint64_t add_tensor(const std::string& name, void* data, int64_t bytes, bool writable);
  void clear_tensors() { tensors_.clear(); }
  Tensor& tensor(const std::string& name);
  // Runs a grid; throws Fault.
  void run(int blocks, int threads, int shared_bytes, const std::function<void()>& body);
  // Barrier and wait call sites met since the last clear, "file:line".
  std::set<std::string> sites;

  // ---- what kernels call, for the running thread
  Thread& self() { return *current_; }
  Block& block() { return *current_->block; }
  int grid_size() const { return grid_size_; }
  void* shared_base() const;

  void read_global(const void* address, void* value, int bytes, bool constant, bool from_other_block, const Location&);
  void write_global(void* address, const void* value, int bytes, const Location&);
  int atomic_add(int* address, int value, const Location&);
  int atomic_max(int* address, int value, const Location&);
  void fence(const Location&);
  void read_shared(const void* address, void* value, int bytes, const Location&);
  void write_shared(void* address, const void* value, int bytes, const Location&);

  void block_barrier(const Location&);
  bool block_barrier_any(bool predicate, const Location&);
  void named_barrier(int id, int threads, const Location&);
  void warp_barrier(const Location&);
  // Waits for all lanes of the warp; the last to come runs `execute` over their arguments.
  template <typename Execute>
  void gather(const char* operation, void* argument, const Location& where, Execute&& execute);
  // One row of 16 bytes read for a lane of the running warp.
  void read_matrix_row(int lane, const void* address, void* value, const Location&);
  void count_matrix_pass(void* const (&addresses)[8]);

  // ---- products of warpgroups
  void fence_products(const Location&);
  void commit_products(const Location&);
  void wait_products(int pending, const Location&);
  void start_product(Product&& product, uint64_t a, uint64_t b, const Location&);
  // One 16-bit number for a product of the running warp; `look`: check and mark its 16 bytes.
  void read_for_product(uint32_t offset, void* value, bool look, bool starts, const Location&);

  void copy_async(void* shared, const void* global, int bytes, bool valid, const Location&);
  void commit_copies();
  void wait_copies(int pending, const Location&);

  void initialize_barrier(uint64_t* barrier, int arrivals, const Location&);
  void fence_barriers(const Location&);
  void arrive(uint64_t* barrier, int64_t announced_bytes, const Location&);
  void hold_until_copied(uint64_t* barrier, const Location&);
  void wait_arrivals(uint64_t* barrier, int phase, const Location&);
  void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier, const Location&);
  // A box of box_rows x 128 bytes of a matrix in global memory, permuted as device.cuh says.
  void copy_box(uint32_t shared, const char* data, int64_t rows, int row_bytes, int box_rows, int column_byte, int row,
                uint64_t* barrier, const Location&);
  void fence_async_proxy(const Location&);

 private:
  friend void fiber_main();
  std::vector<Tensor> tensors_;
  std::vector<std::shared_ptr<Block>> resident_;
  std::vector<std::vector<unsigned char>> stacks_;
  std::mt19937_64 random_;
  Thread* current_ = nullptr;
  void* scheduler_stack_ = nullptr;
  int grid_size_ = 0, block_threads_ = 0, shared_bytes_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::unique_ptr<Fault> fault_;
  std::map<const void*, std::vector<std::shared_ptr<Thread::Publication>>> published_;
  std::vector<Location> locations_;
  size_t last_site_ = 0;

  std::shared_ptr<Block> start_block(int index, int stack_slot);
  bool run_block_once(Block& block);
  void pause(Thread::State state);
  bool dropped(const Location& where);
  std::pair<Tensor*, int64_t> find(const void* address, int bytes, const char* verb, const Location&);
  uint32_t shared_offset(const void* address, int bytes, const char* verb, const Location&);
  uint16_t site(const Location&);
  bool ordered(Block& block, int earlier, uint32_t time, const Thread& later) const {
    return earlier == later.index || time < block.barrier_time || later.seen[earlier] > time;
  }
  template <typename Update>
  int atomic_update(int* address, const Location&, Update&& update);
  void check_global_order(const Tensor& tensor, int64_t offset, int bytes, const char* verb, const Location&,
                          bool atomic = false);
  void mark_read(Thread&, uint32_t offset, int bytes, const Location&);
  void mark_write(Thread&, int writer, uint32_t offset, int bytes, const Location&);
  // Faults if the asynchronous proxy, on behalf of this thread, may not see the last write.
  void check_proxy(Thread&, uint32_t offset, int bytes, const char* verb, const Location&);
  void start_copy(Thread&, const Copy&);
  void land(Block&, const Copy&, int writer);
  void join(Block&, const std::vector<int>& threads);
  void release_block_barrier(Block&);
  TransactionBarrier& transaction_barrier(uint64_t* barrier, const Location&);
  TransactionBarrier& engine_barrier(uint64_t* barrier, const Location&);  // for the copy engine
  bool try_complete(Block&, TransactionBarrier&, const Location&);
  [[noreturn]] void report_deadlock();
};

Machine& machine();
std::string describe(const Location& where);

template <typename Execute>
void Machine::gather(const char* operation, void* argument, const Location& where, Execute&& execute) {
  Thread& thread = self();
  Warp& warp = block().warps[thread.index / 32];
  thread.where = where;
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.where = where;
  } else if (where.line() != warp.where.line() ||
             (operation != warp.operation && std::strcmp(operation, warp.operation) != 0)) {
    throw Fault(std::string("lanes of one warp meet in ") + operation + " and in " + warp.operation + " (" +
                    describe(warp.where) + ")",
                where);
  }
  warp.arguments[thread.index % 32] = argument;
  if (++warp.arrived < 32) {
    pause(Thread::State::kWaiting);
    return;
  }
  warp.arrived = 0;
  execute(warp.arguments);
  for (int lane = 0; lane < 32; ++lane) {
    block().threads[thread.index / 32 * 32 + lane].state = Thread::State::kReady;
  }
}

}  // namespace apar::emulator
