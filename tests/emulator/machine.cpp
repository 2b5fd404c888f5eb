#include "machine.h"

#include <algorithm>
#include <cstring>
#include <limits>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace apar::emulator {

namespace {

// Addresses that kernels hold: no host ever maps them, so a plain dereference crashes instead of passing unchecked.
constexpr uint64_t kGlobalTag = 0x0100'0000'0000'0000;
constexpr uint64_t kSharedTag = 0x0200'0000'0000'0000;
constexpr int kTensorShift = 40;
constexpr int64_t kFirstByte = 1 << 20;  // room below a tensor, so that a small negative offset names the right one
constexpr size_t kStackBytes = 96 * 1024;
constexpr int kCopiers = 16;  // barriers of bulk copies per block

std::string file_name(const Location& where) {
  const std::string path = where.file_name();
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace

std::string describe(const Location& where) { return file_name(where) + ":" + std::to_string(where.line()); }

Fault::Fault(const std::string& what, const Location& where) : std::runtime_error(describe(where) + ": " + what) {}

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

// ---- fibers

void fiber_main() {
  Machine& m = machine();
  try {
    (*m.body_)();
    Thread& thread = m.self();
    bool under_way = !thread.open_group.empty();
    for (const auto& group : thread.groups) {
      under_way |= !group.empty();
    }
    if (under_way) {
      // Landing after the block is gone would write into another block's memory.
      throw Fault("a thread ends with asynchronous copies under way", thread.where);
    }
  } catch (const Fault& fault) {
    m.fault_ = std::make_unique<Fault>(fault);
  }
  m.pause(Thread::State::kDone);
}

#if defined(__x86_64__)
// Saves the registers a function must keep and the stack, and goes on where `to` was saved.
extern "C" void apar_switch_stack(void** from, void* to);
asm(R"(
.text
.globl apar_switch_stack
.hidden apar_switch_stack
.type apar_switch_stack, @function
apar_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size apar_switch_stack, .-apar_switch_stack
)");

namespace {
void* prepare_stack(unsigned char* stack, size_t bytes) {
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top);
  *--words = nullptr;  // where fiber_main would return to: keeps the stack aligned as after a call
  *--words = reinterpret_cast<void*>(&fiber_main);
  for (int saved = 0; saved < 6; ++saved) {
    *--words = nullptr;
  }
  return words;
}
}  // namespace
#else
extern "C" void apar_switch_stack(void** from, void* to) {
  auto* context = new ucontext_t;
  *from = context;
  auto* target = static_cast<ucontext_t*>(to);
  swapcontext(context, target);
  delete context;
}
namespace {
void* prepare_stack(unsigned char* stack, size_t bytes) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  makecontext(context, fiber_main, 0);
  return context;
}
}  // namespace
#endif

void Machine::pause(Thread::State state) {
  Thread* thread = current_;
  thread->state = state;
  apar_switch_stack(&thread->stack_pointer, scheduler_stack_);
}

// ---- running a grid

std::shared_ptr<Block> Machine::start_block(int index, int stack_slot) {
  auto block = std::make_shared<Block>();
  block->index = index;
  block->shared.assign(shared_bytes_, 0xff);  // NaN in every floating type
  block->units.resize(shared_bytes_ / 2);
  const int warps = block_threads_ / 32;
  block->reads.resize(static_cast<size_t>(shared_bytes_ / 2) * warps);
  block->warps.resize(warps);
  block->threads.resize(block_threads_);
  block->alive = block_threads_;
  for (int t = 0; t < block_threads_; ++t) {
    Thread& thread = block->threads[t];
    thread.index = t;
    thread.block = block.get();
    thread.seen.assign(block_threads_ + kCopiers, 0);
    auto& stack = stacks_[static_cast<size_t>(stack_slot) * block_threads_ + t];
    stack.resize(kStackBytes);
    thread.stack_pointer = prepare_stack(stack.data(), kStackBytes);
  }
  return block;
}

// One turn for every thread that can run; whether any could.
bool Machine::run_block_once(Block& block) {
  bool progress = false;
  for (Thread& thread : block.threads) {
    if (thread.state != Thread::State::kReady && thread.state != Thread::State::kPolling) {
      continue;
    }
    const bool polling = thread.state == Thread::State::kPolling;
    current_ = &thread;
    thread.state = Thread::State::kReady;
    apar_switch_stack(&scheduler_stack_, thread.stack_pointer);
    if (fault_) {
      throw *fault_;
    }
    if (thread.state == Thread::State::kDone) {
      --block.alive;
      for (const auto& [offset, barrier] : block.barriers) {
        if (block.alive == 0 && !barrier.copies.empty()) {
          throw Fault("a block ends with bulk copies under way", barrier.copies.front().where);
        }
      }
      const Warp& warp = block.warps[thread.index / 32];
      if (!warp.accumulators.empty()) {
        throw Fault("a thread ends with products under way", thread.where);
      }
      for (size_t index = 0; block.alive == 0 && index < block.warps.size() && !block.warpgroups.empty(); ++index) {
        if (block.warps[index].num_products != block.warpgroups[index / 4].size()) {
          throw Fault("a warp has left out products of its warpgroup", thread.where);
        }
      }
      if (block.alive > 0 && block.at_barrier == block.alive) {
        release_block_barrier(block);
      }
    }
    progress |= !(polling && thread.state == Thread::State::kPolling);
  }
  return progress;
}

void Machine::run(int blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  if (blocks <= 0 || threads <= 0 || threads % 32 != 0 || threads > 1024 || shared_bytes > settings.shared_bytes) {
    throw std::invalid_argument("a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                                " threads with " + std::to_string(shared_bytes) +
                                " bytes of shared memory is not possible");
  }
  grid_size_ = blocks;
  block_threads_ = threads;
  shared_bytes_ = (shared_bytes + 15) / 16 * 16;
  counters.largest_shared_bytes = std::max<int64_t>(counters.largest_shared_bytes, shared_bytes);
  body_ = &body;
  fault_.reset();
  published_.clear();
  random_.seed(settings.seed);
  const int slots = std::min(blocks, settings.resident_blocks);
  stacks_.resize(std::max(stacks_.size(), static_cast<size_t>(slots) * threads));
  for (Tensor& tensor : tensors_) {
    tensor.marks.assign(tensor.writable ? tensor.bytes : 0, {});
  }
  resident_.clear();
  int next = 0;
  while (next < slots) {
    resident_.push_back(start_block(next, next));
    ++next;
  }
  int left = blocks;
  int idle_turns = 0;
  try {
    while (left > 0) {
      const size_t slot = random_() % resident_.size();
      Block* block = resident_[slot].get();
      if (block == nullptr) {
        continue;
      }
      idle_turns = run_block_once(*block) ? 0 : idle_turns + 1;
      if (block->alive == 0) {
        --left;
        resident_[slot] = next < blocks ? start_block(next, static_cast<int>(slot)) : nullptr;
        ++next;
        idle_turns = 0;
      } else if (idle_turns > 64 * slots) {
        report_deadlock();
      }
    }
  } catch (...) {
    resident_.clear();
    current_ = nullptr;
    throw;
  }
  resident_.clear();
  current_ = nullptr;
}

void Machine::report_deadlock() {
  std::map<std::string, int> waiting;
  Location where;
  for (const auto& block : resident_) {
    if (block) {
      for (const Thread& thread : block->threads) {
        if (thread.state != Thread::State::kDone) {
          ++waiting["block " + std::to_string(block->index) + " " + describe(thread.where)];
          where = thread.where;
        }
      }
    }
  }
  std::string text = "no thread can go on:";
  for (const auto& [place, count] : waiting) {
    text += " " + std::to_string(count) + " wait in " + place + ";";
  }
  throw Fault(text, where);
}

bool Machine::dropped(const Location& where) {
  const std::string name = describe(where);
  sites.insert(name);
  return settings.dropped_sites.count(name) != 0;
}

// ---- global memory

uint64_t Machine::add_tensor(const std::string& name, void* data, int64_t bytes, bool writable) {
  tensors_.push_back(Tensor{name, static_cast<unsigned char*>(data), bytes, writable, 0, 0, {}});
  return kGlobalTag | (static_cast<uint64_t>(tensors_.size()) << kTensorShift) | kFirstByte;
}

Tensor& Machine::tensor(const std::string& name) {
  for (Tensor& tensor : tensors_) {
    if (tensor.name == name) {
      return tensor;
    }
  }
  throw std::invalid_argument("no tensor is called " + name);
}

std::pair<Tensor*, int64_t> Machine::find(const void* address, int bytes, const char* verb, const Location& where) {
  const auto bits = reinterpret_cast<uint64_t>(address);
  const uint64_t number = (bits & ~kGlobalTag) >> kTensorShift;
  if ((bits & kGlobalTag) == 0 || number == 0 || number > tensors_.size()) {
    throw Fault(std::string(verb) + " of " + std::to_string(bytes) + " bytes of no tensor", where);
  }
  Tensor& tensor = tensors_[number - 1];
  const int64_t offset = static_cast<int64_t>(bits & ((uint64_t{1} << kTensorShift) - 1)) - kFirstByte;
  if (offset < 0 || offset + bytes > tensor.bytes) {
    throw Fault(std::string(verb) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                    " of " + tensor.name + ", which has " + std::to_string(tensor.bytes),
                where);
  }
  if (offset % std::min(bytes, 16) != 0) {
    throw Fault(std::string(verb) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                    " of " + tensor.name + " is not aligned",
                where);
  }
  return {&tensor, offset};
}

// Faults if somebody stored to these bytes in this launch and the running thread has no way to know.
void Machine::check_global_order(const Tensor& tensor, int64_t offset, int bytes, const char* verb,
                                 const Location& where, bool atomic) {
  if (tensor.marks.empty()) {
    return;
  }
  Thread& me = self();
  Block& mine = block();
  for (int64_t unit = offset; unit < offset + bytes; ++unit) {
    const Tensor::Mark& mark = tensor.marks[unit];
    // Atomic operations need no order among themselves; those of other blocks are ordered by fences, not by time.
    if (mark.block < 0 || (mark.atomic && (atomic || mark.block != mine.index))) {
      continue;
    }
    bool known = false;
    if (mark.block == mine.index) {
      known = ordered(mine, mark.thread, mark.time, me);
    } else {
      for (const Acquired& acquired : mine.acquired) {
        const auto& publication = *acquired.publication;
        if (publication.block == mark.block && ordered(mine, acquired.thread, acquired.time, me) &&
            (mark.time < publication.barrier_time || publication.seen[mark.thread] > mark.time ||
             (mark.thread == publication.thread && mark.time <= publication.time))) {
          known = true;
          break;
        }
      }
    }
    if (!known) {
      throw Fault(std::string(verb) + " of " + tensor.name + " at offset " + std::to_string(unit) +
                      " races with a store of thread " + std::to_string(mark.thread) + " of block " +
                      std::to_string(mark.block),
                  where);
    }
  }
}

void Machine::read_global(const void* address, void* value, int bytes, bool constant, bool from_other_block,
                          const Location& where) {
  const auto [tensor, offset] = find(address, bytes, "load", where);
  if (!tensor->marks.empty()) {
    for (int64_t unit = offset; unit < offset + bytes; ++unit) {
      const Tensor::Mark& mark = tensor->marks[unit];
      if (mark.block >= 0 && (constant || (!from_other_block && mark.block != block().index))) {
        throw Fault("load of " + tensor->name + " through a cache that may be stale: block " +
                        std::to_string(mark.block) + " stored there in this launch",
                    where);
      }
    }
    check_global_order(*tensor, offset, bytes, "load", where);
  }
  std::memcpy(value, tensor->data + offset, bytes);
  tensor->bytes_read += bytes;
  if (settings.shift != 0 && bytes == 4 && tensor->name == settings.shifted_tensor) {
    int32_t number;
    std::memcpy(&number, value, 4);
    number += settings.shift;
    std::memcpy(value, &number, 4);
  }
}

void Machine::write_global(void* address, const void* value, int bytes, const Location& where) {
  const auto [tensor, offset] = find(address, bytes, "store", where);
  if (!tensor->writable) {
    throw Fault("store to " + tensor->name + ", which is an input", where);
  }
  check_global_order(*tensor, offset, bytes, "store", where);
  for (int64_t unit = offset; unit < offset + bytes; ++unit) {
    tensor->marks[unit] = {block().index, self().index, block().clock, false};
  }
  std::memcpy(tensor->data + offset, value, bytes);
  tensor->bytes_written += bytes;
}

template <typename Update>
int Machine::atomic_update(int* address, const Location& where, Update&& update) {
  self().where = where;
  pause(Thread::State::kReady);  // others may come first
  const auto [tensor, offset] = find(address, 4, "atomic operation", where);
  if (!tensor->writable) {
    throw Fault("atomic operation on " + tensor->name + ", which is an input", where);
  }
  int old;
  std::memcpy(&old, tensor->data + offset, 4);
  const int updated = update(old);
  std::memcpy(tensor->data + offset, &updated, 4);
  if (!tensor->marks.empty()) {
    check_global_order(*tensor, offset, 4, "atomic operation", where, true);
    for (int64_t unit = offset; unit < offset + 4; ++unit) {
      tensor->marks[unit] = {block().index, self().index, block().clock, true};
    }
  }
  auto& publications = published_[tensor->data + offset];
  Thread& me = self();
  for (const auto& publication : publications) {
    if (publication->block != block().index) {
      me.unacquired.push_back(publication);
    }
  }
  if (me.fenced) {
    publications.push_back(me.fenced);
  }
  return old;
}

int Machine::atomic_add(int* address, int value, const Location& where) {
  return atomic_update(address, where, [value](int old) { return old + value; });
}

int Machine::atomic_max(int* address, int value, const Location& where) {
  return atomic_update(address, where, [value](int old) { return std::max(old, value); });
}

void Machine::fence(const Location& where) {
  if (dropped(where)) {
    return;
  }
  Thread& me = self();
  Block& mine = block();
  for (auto& publication : me.unacquired) {
    mine.acquired.push_back({publication, me.index, mine.clock});
  }
  me.unacquired.clear();
  me.fenced = std::make_shared<Thread::Publication>(
      Thread::Publication{mine.index, me.index, mine.clock, mine.barrier_time, me.seen});
  ++mine.clock;
}

// ---- shared memory

void* Machine::shared_base() const { return reinterpret_cast<void*>(kSharedTag); }

uint32_t Machine::shared_offset(const void* address, int bytes, const char* verb, const Location& where) {
  const auto bits = reinterpret_cast<uint64_t>(address);
  const int64_t offset = static_cast<int64_t>(bits - kSharedTag);
  if (offset < 0 || offset + bytes > static_cast<int64_t>(block().shared.size())) {
    throw Fault(std::string(verb) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                    " of shared memory, which has " + std::to_string(block().shared.size()),
                where);
  }
  if (offset % std::min(bytes, 16) != 0 || bytes % 2 != 0) {
    throw Fault(std::string(verb) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                    " of shared memory is not aligned",
                where);
  }
  return static_cast<uint32_t>(offset);
}

uint16_t Machine::site(const Location& where) {
  const auto same = [&](size_t i) {
    return locations_[i].line() == where.line() && locations_[i].file_name() == where.file_name();
  };
  if (last_site_ < locations_.size() && same(last_site_)) return static_cast<uint16_t>(last_site_);
  for (size_t i = 0; i < locations_.size(); ++i) {
    if (same(i)) {
      last_site_ = i;
      return static_cast<uint16_t>(i);
    }
  }
  locations_.push_back(where);
  return static_cast<uint16_t>(locations_.size() - 1);
}

void Machine::mark_read(Thread& thread, uint32_t offset, int bytes, const Location& where) {
  Block& mine = *thread.block;
  const uint16_t here = site(where);
  const int warp = thread.index / 32;
  for (uint32_t unit = offset / 2; unit < (offset + bytes) / 2; ++unit) {
    const Block::Unit& last = mine.units[unit];
    if (last.in_flight) {
      throw Fault("read of shared memory that an asynchronous copy is still to fill, started in " +
                      describe(locations_[last.site]),
                  where);
    }
    if (last.writer < 0) {
      throw Fault("read of shared memory at offset " + std::to_string(unit * 2) + " that nobody has written", where);
    }
    if (!ordered(mine, last.writer, last.time, thread)) {
      throw Fault("thread " + std::to_string(thread.index) + " reads shared memory at offset " +
                      std::to_string(unit * 2) + " with no barrier after the write of thread " +
                      std::to_string(last.writer) + " in " + describe(locations_[last.site]),
                  where);
    }
    Block::ReadMark& mark = mine.reads[unit * mine.warps.size() + warp];
    mark.lanes = (mark.time < mine.barrier_time ? 0 : mark.lanes) | (1u << (thread.index % 32));
    mark.time = mine.clock;
    mark.site = here;
  }
}

void Machine::mark_write(Thread& thread, int writer, uint32_t offset, int bytes, const Location& where) {
  Block& mine = *thread.block;
  const uint16_t here = site(where);
  for (uint32_t unit = offset / 2; unit < (offset + bytes) / 2; ++unit) {
    Block::Unit& last = mine.units[unit];
    if (last.in_flight) {
      throw Fault("write to shared memory that an asynchronous copy is still to fill, started in " +
                      describe(locations_[last.site]),
                  where);
    }
    if (last.writer >= 0 && !ordered(mine, last.writer, last.time, thread)) {
      throw Fault("thread " + std::to_string(thread.index) + " writes shared memory at offset " +
                      std::to_string(unit * 2) + " with no barrier after the write of thread " +
                      std::to_string(last.writer) + " in " + describe(locations_[last.site]),
                  where);
    }
    for (size_t warp = 0; warp < mine.warps.size(); ++warp) {
      const Block::ReadMark& mark = mine.reads[unit * mine.warps.size() + warp];
      if (mark.lanes == 0 || mark.time < mine.barrier_time) {
        continue;
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int reader = static_cast<int>(warp) * 32 + lane;
        if ((mark.lanes >> lane & 1) != 0 && !ordered(mine, reader, mark.time, thread)) {
          throw Fault("thread " + std::to_string(thread.index) + " writes shared memory at offset " +
                          std::to_string(unit * 2) + " with no barrier after the read of thread " +
                          std::to_string(reader) + " in " + describe(locations_[mark.site]),
                      where);
        }
      }
    }
    last.writer = writer;
    last.time = mine.clock;
    last.site = here;
    last.generic = true;
  }
}

void Machine::read_shared(const void* address, void* value, int bytes, const Location& where) {
  const uint32_t offset = shared_offset(address, bytes, "read", where);
  mark_read(self(), offset, bytes, where);
  std::memcpy(value, block().shared.data() + offset, bytes);
}

void Machine::write_shared(void* address, const void* value, int bytes, const Location& where) {
  const uint32_t offset = shared_offset(address, bytes, "write", where);
  mark_write(self(), self().index, offset, bytes, where);
  std::memcpy(block().shared.data() + offset, value, bytes);
}

void Machine::read_matrix_row(int lane, const void* address, void* value, const Location& where) {
  const uint32_t offset = shared_offset(address, 16, "matrix load", where);
  mark_read(block().threads[self().index / 32 * 32 + lane], offset, 16, where);
  std::memcpy(value, block().shared.data() + offset, 16);
}

void Machine::count_matrix_pass(void* const (&addresses)[8]) {
  int taken[8] = {};
  for (int i = 0; i < 8; ++i) {
    bool again = false;
    for (int j = 0; j < i; ++j) {
      again |= addresses[i] == addresses[j];
    }
    taken[reinterpret_cast<uint64_t>(addresses[i]) / 16 % 8] += again ? 0 : 1;
  }
  ++counters.matrix_load_passes;
  counters.matrix_load_conflicts += *std::max_element(taken, taken + 8) - 1;
}

// ---- products of warpgroups

void Machine::fence_products(const Location& where) {
  if (dropped(where)) {
    return;
  }
  gather("fence_products", nullptr, where, [this](void**) { block().warps[self().index / 32].products_fenced = true; });
}

void Machine::commit_products(const Location& where) {
  if (dropped(where)) {
    return;
  }
  gather("commit_products", nullptr, where, [this](void**) {
    Warp& warp = block().warps[self().index / 32];
    warp.product_groups.push_back(std::move(warp.open_products));
    warp.open_products.clear();
  });
}

void Machine::start_product(Product&& product, uint64_t a, uint64_t b, const Location& where) {
  Block& mine = block();
  const int index = self().index / 32;
  Warp& warp = mine.warps[index];
  if (!warp.products_fenced) {
    throw Fault("a product with no fence of its registers since products were last waited for", where);
  }
  if (mine.warpgroups.empty()) {
    mine.warpgroups.resize((mine.warps.size() + 3) / 4);
  }
  auto& started = mine.warpgroups[index / 4];
  const Block::StartedProduct mark{where.line(), a, b};
  if (warp.num_products == started.size()) {
    started.push_back(mark);
  } else if (!(started[warp.num_products] == mark)) {
    throw Fault("the warps of a warpgroup start different products", where);
  }
  ++warp.num_products;
  for (float* values : product.accumulators) {
    auto [entry, fresh] = warp.accumulators.try_emplace(values);
    if (fresh) {
      entry->second.assign(values, values + product.accumulator_floats);
      std::fill(values, values + product.accumulator_floats, std::numeric_limits<float>::quiet_NaN());
    }
  }
  warp.open_products.push_back(std::move(product));
  ++counters.warpgroup_products;
}

void Machine::wait_products(int pending, const Location& where) {
  if (dropped(where)) {
    return;
  }
  gather("wait_products", nullptr, where, [&](void**) {
    Warp& warp = block().warps[self().index / 32];
    std::set<float*> under_way;
    while (static_cast<int>(warp.product_groups.size()) > pending) {
      for (const Product& product : warp.product_groups.front()) {
        std::vector<float*> accumulators;
        for (float* values : product.accumulators) {
          accumulators.push_back(warp.accumulators.at(values).data());
        }
        product.run(accumulators);
      }
      warp.product_groups.pop_front();
    }
    const auto keep = [&](const std::vector<Product>& products) {
      for (const Product& product : products) {
        under_way.insert(product.accumulators.begin(), product.accumulators.end());
      }
    };
    keep(warp.open_products);
    for (const auto& group : warp.product_groups) {
      keep(group);
    }
    for (auto entry = warp.accumulators.begin(); entry != warp.accumulators.end();) {
      if (under_way.count(entry->first) != 0) {
        ++entry;
        continue;
      }
      std::copy(entry->second.begin(), entry->second.end(), entry->first);
      entry = warp.accumulators.erase(entry);
    }
    warp.products_fenced = !under_way.empty();
  });
}

void Machine::read_for_product(uint32_t address, void* value, bool look, bool starts, const Location& where) {
  const auto pointer = reinterpret_cast<const void*>(kSharedTag + address);
  const uint32_t offset = shared_offset(pointer, 2, "product", where);
  if (look) {
    const int first = self().index / 32 * 32;
    mark_read(block().threads[first], offset / 16 * 16, 16, where);
    if (starts) {
      for (const int lane : {0, 31}) {
        check_proxy(block().threads[first + lane], offset / 16 * 16, 16, "product over", where);
      }
    }
  }
  std::memcpy(value, block().shared.data() + offset, 2);
}

// ---- barriers

void Machine::release_block_barrier(Block& block) {
  block.barrier_time = ++block.clock;
  block.at_barrier = 0;
  block.predicate_result = block.predicate;
  block.predicate = false;
  ++counters.block_barriers;
  for (Thread& thread : block.threads) {
    if (thread.state == Thread::State::kWaiting) {
      thread.state = Thread::State::kReady;
    }
  }
}

void Machine::block_barrier(const Location& where) { block_barrier_any(false, where); }

bool Machine::block_barrier_any(bool predicate, const Location& where) {
  if (dropped(where)) {
    return predicate;
  }
  Thread& me = self();
  Block& mine = block();
  me.where = where;
  if (mine.at_barrier > 0 && where.line() != mine.barrier_where.line()) {
    throw Fault("threads of one block wait at two barriers, here and in " + describe(mine.barrier_where), where);
  }
  mine.barrier_where = where;
  mine.predicate |= predicate;
  if (++mine.at_barrier == mine.alive) {
    release_block_barrier(mine);
    me.state = Thread::State::kReady;
  } else {
    pause(Thread::State::kWaiting);
  }
  return mine.predicate_result;
}

// After this, all of the threads know what any of them knew.
void Machine::join(Block& block, const std::vector<int>& threads) {
  ++block.clock;
  std::vector<uint32_t> all(block.threads[0].seen.size(), 0);
  for (int t : threads) {
    const auto& seen = block.threads[t].seen;
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = std::max(all[i], seen[i]);
    }
  }
  for (int t : threads) {
    all[t] = block.clock;
  }
  for (int t : threads) {
    block.threads[t].seen = all;
  }
}

void Machine::named_barrier(int id, int threads, const Location& where) {
  if (dropped(where)) {
    return;
  }
  Block& mine = block();
  Thread& me = self();
  me.where = where;
  if (id < 1 || id > 15 || threads % 32 != 0) {
    throw Fault("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads", where);
  }
  auto& barrier = mine.named[id];
  if (barrier.arrived > 0 && barrier.expected != threads) {
    throw Fault("barrier " + std::to_string(id) + " is waited for by " + std::to_string(barrier.expected) + " and by " +
                    std::to_string(threads) + " threads",
                where);
  }
  barrier.expected = threads;
  barrier.threads.push_back(me.index);
  if (++barrier.arrived < threads) {
    pause(Thread::State::kWaiting);
    return;
  }
  if (threads == block_threads_) {
    mine.barrier_time = ++mine.clock;
    ++counters.block_barriers;
  } else {
    join(mine, barrier.threads);
  }
  for (int t : barrier.threads) {
    mine.threads[t].state = Thread::State::kReady;
  }
  barrier = {};
}

void Machine::warp_barrier(const Location& where) {
  if (dropped(where)) {
    return;
  }
  gather("synchronize_warp", nullptr, where, [this](void**) {
    std::vector<int> lanes(32);
    for (int lane = 0; lane < 32; ++lane) {
      lanes[lane] = self().index / 32 * 32 + lane;
    }
    join(block(), lanes);
  });
}

// ---- asynchronous copies

void Machine::start_copy(Thread& thread, const Copy& copy) {
  Block& mine = *thread.block;
  if (copy.async_proxy) check_proxy(thread, copy.shared, copy.bytes, "bulk copy over", copy.where);
  mark_write(thread, thread.index, copy.shared, copy.bytes, copy.where);
  for (uint32_t unit = copy.shared / 2; unit < (copy.shared + copy.bytes) / 2; ++unit) {
    mine.units[unit].in_flight = true;
  }
  ++counters.copies;
}

void Machine::land(Block& block, const Copy& copy, int writer) {
  for (uint32_t unit = copy.shared / 2; unit < (copy.shared + copy.bytes) / 2; ++unit) {
    block.units[unit].in_flight = false;
    block.units[unit].writer = writer;
    block.units[unit].time = block.clock;
    block.units[unit].generic = !copy.async_proxy;
  }
  if (copy.source == nullptr) {
    std::memset(block.shared.data() + copy.shared, 0, copy.bytes);
  } else {
    std::memcpy(block.shared.data() + copy.shared, copy.source, copy.bytes);
  }
}

void Machine::copy_async(void* shared, const void* global, int bytes, bool valid, const Location& where) {
  Copy copy{shared_offset(shared, bytes, "asynchronous copy", where), nullptr, bytes, where};
  if (valid) {
    const auto [tensor, offset] = find(global, bytes, "asynchronous copy", where);
    check_global_order(*tensor, offset, bytes, "asynchronous copy", where);
    tensor->bytes_read += bytes;
    copy.source = tensor->data + offset;
  }
  start_copy(self(), copy);
  self().open_group.push_back(copy);
}

void Machine::commit_copies() {
  self().groups.push_back(std::move(self().open_group));
  self().open_group.clear();
}

void Machine::wait_copies(int pending, const Location& where) {
  self().where = where;
  if (dropped(where)) {
    return;
  }
  auto& groups = self().groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) {
      land(block(), copy, self().index);
    }
    groups.pop_front();
  }
}

// ---- bulk copies and their barriers

void Machine::initialize_barrier(uint64_t* address, int arrivals, const Location& where) {
  const uint32_t offset = shared_offset(address, 8, "barrier", where);
  mark_write(self(), self().index, offset, 8, where);
  Block& mine = block();
  if (static_cast<int>(mine.barriers.size()) >= kCopiers) {
    throw Fault("more than " + std::to_string(kCopiers) + " barriers", where);
  }
  TransactionBarrier barrier;
  barrier.expected = barrier.pending = arrivals;
  barrier.owner = self().index;
  barrier.copier = block_threads_ + static_cast<int>(mine.barriers.size());
  barrier.arriving.assign(self().seen.size(), 0);
  barrier.completed.assign(self().seen.size(), 0);
  mine.barriers[offset] = barrier;
}

void Machine::fence_barriers(const Location& where) {
  if (dropped(where)) {
    return;
  }
  for (auto& [offset, barrier] : block().barriers) {
    barrier.fenced |= barrier.owner == self().index;
  }
}

TransactionBarrier& Machine::engine_barrier(uint64_t* address, const Location& where) {
  TransactionBarrier& barrier = transaction_barrier(address, where);
  if (!barrier.fenced) {
    throw Fault("bulk copy to a barrier with no fence after it was initialized", where);
  }
  return barrier;
}

TransactionBarrier& Machine::transaction_barrier(uint64_t* address, const Location& where) {
  const uint32_t offset = shared_offset(address, 8, "barrier", where);
  mark_read(self(), offset, 8, where);
  const auto found = block().barriers.find(offset);
  if (found == block().barriers.end()) {
    throw Fault("a barrier that was not initialized", where);
  }
  return found->second;
}

void Machine::arrive(uint64_t* address, int64_t announced_bytes, const Location& where) {
  self().where = where;
  TransactionBarrier& barrier = transaction_barrier(address, where);
  if (dropped(where)) {
    return;
  }
  if (barrier.pending == 0) {
    throw Fault("more arrivals than the barrier expects", where);
  }
  Block& mine = block();
  barrier.announced_bytes += announced_bytes;
  for (size_t i = 0; i < barrier.arriving.size(); ++i) {
    barrier.arriving[i] = std::max(barrier.arriving[i], self().seen[i]);
  }
  barrier.arriving[self().index] = ++mine.clock;
  --barrier.pending;
  if (barrier.announced_bytes == 0 && barrier.copies.empty()) {
    try_complete(mine, barrier, where);
  }
}

// Completes the phase if all has come; what was copied lands now and not earlier.
bool Machine::try_complete(Block& block, TransactionBarrier& barrier, const Location& where) {
  int64_t bytes = 0;
  for (const Copy& copy : barrier.copies) {
    bytes += copy.bytes;
  }
  if (bytes > barrier.announced_bytes && barrier.pending == 0) {
    throw Fault(std::to_string(bytes) + " bytes are copied where " + std::to_string(barrier.announced_bytes) +
                    " were announced",
                where);
  }
  if (barrier.pending > 0 || bytes < barrier.announced_bytes) {
    return false;
  }
  for (const Copy& copy : barrier.copies) {
    land(block, copy, barrier.copier);
  }
  barrier.arriving[barrier.copier] = ++block.clock;
  barrier.completed = barrier.arriving;
  barrier.copies.clear();
  barrier.announced_bytes = 0;
  barrier.pending = barrier.expected;
  barrier.phase ^= 1;
  return true;
}

void Machine::wait_arrivals(uint64_t* address, int phase, const Location& where) {
  self().where = where;
  TransactionBarrier& barrier = transaction_barrier(address, where);
  if (dropped(where)) {
    return;
  }
  while (barrier.phase == phase) {
    if (!try_complete(block(), barrier, where)) {
      pause(Thread::State::kPolling);
    }
  }
  Thread& me = self();
  for (size_t i = 0; i < me.seen.size(); ++i) {
    me.seen[i] = std::max(me.seen[i], barrier.completed[i]);
  }
}

void Machine::copy_bulk(void* shared, const void* global, int bytes, uint64_t* address, const Location& where) {
  TransactionBarrier& barrier = engine_barrier(address, where);
  if (bytes <= 0 || bytes % 16 != 0) {
    throw Fault("bulk copy of " + std::to_string(bytes) + " bytes", where);
  }
  const auto [tensor, offset] = find(global, bytes, "bulk copy", where);
  check_global_order(*tensor, offset, bytes, "bulk copy", where);
  tensor->bytes_read += bytes;
  const Copy copy{shared_offset(shared, bytes, "bulk copy", where), tensor->data + offset, bytes, where, true};
  start_copy(self(), copy);
  barrier.copies.push_back(copy);
}

void Machine::copy_box(uint32_t shared, const char* data, int64_t rows, int row_bytes, int box_rows, int column_byte,
                       int row, uint64_t* address, const Location& where) {
  constexpr int kPanel = 128, kPart = 16;
  TransactionBarrier& barrier = engine_barrier(address, where);
  if (shared % (8 * kPanel) != 0 || column_byte < 0 || column_byte % kPanel != 0 || row_bytes % kPanel != 0) {
    throw Fault("copy of a box at column byte " + std::to_string(column_byte) + " to shared memory at " +
                    std::to_string(shared) + " is not aligned",
                where);
  }
  for (int i = 0; i < box_rows; ++i) {
    const bool inside = row + i >= 0 && row + i < rows && column_byte < row_bytes;
    const unsigned char* source = nullptr;
    if (inside) {
      const auto [tensor, offset] =
          find(data + static_cast<int64_t>(row + i) * row_bytes + column_byte, kPanel, "copy of a box", where);
      check_global_order(*tensor, offset, kPanel, "copy of a box", where);
      tensor->bytes_read += kPanel;
      source = tensor->data + offset;
    }
    for (int part = 0; part < kPanel / kPart; ++part) {
      const auto target = reinterpret_cast<const void*>(kSharedTag + shared + i * kPanel + (part ^ i % 8) * kPart);
      const Copy copy{shared_offset(target, kPart, "copy of a box", where), inside ? source + part * kPart : nullptr,
                      kPart, where, true};
      start_copy(self(), copy);
      barrier.copies.push_back(copy);
    }
  }
}

// The thread's copies become the barrier's: its phase completes when they land, not before.
void Machine::hold_until_copied(uint64_t* address, const Location& where) {
  TransactionBarrier& barrier = transaction_barrier(address, where);
  if (dropped(where)) {
    return;
  }
  if (barrier.pending == 0) {
    throw Fault("a thread holds up a barrier after all its arrivals: the phase may be over", where);
  }
  Thread& me = self();
  const auto hand_over = [&](std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
      barrier.announced_bytes += copy.bytes;
      barrier.copies.push_back(copy);
    }
    copies.clear();
  };
  for (auto& group : me.groups) {
    hand_over(group);
  }
  me.groups.clear();
  hand_over(me.open_group);
  for (size_t i = 0; i < barrier.arriving.size(); ++i) {
    barrier.arriving[i] = std::max(barrier.arriving[i], me.seen[i]);
  }
  barrier.arriving[me.index] = ++block().clock;
}

void Machine::fence_async_proxy(const Location& where) {
  if (dropped(where)) {
    return;
  }
  Thread& me = self();
  me.fenced_seen = me.seen;
  me.fenced_barrier_time = block().barrier_time;
  me.fence_times.push_back(block().clock++);
}

void Machine::check_proxy(Thread& thread, uint32_t offset, int bytes, const char* verb, const Location& where) {
  Block& mine = *thread.block;
  for (uint32_t unit = offset / 2; unit < (offset + bytes) / 2; ++unit) {
    const Block::Unit& last = mine.units[unit];
    if (last.writer < 0 || !last.generic) {
      continue;
    }
    // Fenced by this thread after it knew of the write?
    bool fenced = last.writer == thread.index
                      ? !thread.fence_times.empty() && thread.fence_times.back() >= last.time
                      : last.time < thread.fenced_barrier_time ||
                            (!thread.fenced_seen.empty() && thread.fenced_seen[last.writer] > last.time);
    // Or by the writer, before the release by which this thread knows of it?
    if (!fenced && last.writer < static_cast<int>(mine.threads.size()) && last.writer != thread.index) {
      const auto& times = mine.threads[last.writer].fence_times;
      const auto first = std::lower_bound(times.begin(), times.end(), last.time);
      fenced = first != times.end() && (*first < mine.barrier_time || thread.seen[last.writer] > *first);
    }
    if (!fenced) {
      throw Fault(std::string(verb) + " shared memory at offset " + std::to_string(unit * 2) +
                      " with no fence of the asynchronous proxy after the write of thread " +
                      std::to_string(last.writer) + " in " + describe(locations_[last.site]),
                  where);
    }
  }
}

}  // namespace apar::emulator
