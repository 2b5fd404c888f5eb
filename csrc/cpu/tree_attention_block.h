// One block of entries for the packed rows that see it, one KV head: S = Q K^T, online softmax, O += P V.
// Include after one of vec_*.h.
//
// Keys are transposed into scratch (entries across the lanes), values laid out beside (head_dim across the lanes). Each
// row's sums run over exactly the entries that it sees: others are replaced before they count, so that even NaN there
// changes nothing.
#pragma once

#include <cstring>

#include "cpu/tree_attention_elements.h"
#include "cpu/tree_attention_kernel.h"
#include "cpu/tree_attention_math.h"

namespace apar::cpu {
namespace {

// Hands out 64-byte aligned arrays of one piece of memory; without memory it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// Fetches the KV of the next block into L2 bit by bit while this one is worked on: in address order, which the
// hardware's own prefetchers follow, and at an even pace, since a burst would fill the queue of outstanding misses and
// stall everything else.
class Prefetcher {
 public:
  static constexpr int64_t kStep = 256;  // bytes; the last step may reach past a run

  void clear() { num_runs_ = 0; }

  // A run of bytes that will be needed. The address may be a wrong one: nothing is read.
  void add(uintptr_t address) { runs_[num_runs_++] = address; }

  // work: of the current block, in any unit; run_bytes: of every run, a multiple of kStep.
  void start(float work, int64_t run_bytes) {
    run_ = 0;
    offset_ = 0;
    run_bytes_ = static_cast<uintptr_t>(run_bytes);
    credit_ = 0;
    rate_ = static_cast<float>(num_runs_ * run_bytes / kStep) / work;
  }

  // So much of the work comes next.
  void advance(float work) {
    credit_ += work * rate_;
    while (credit_ >= 1.0f && run_ < num_runs_) {
      credit_ -= 1.0f;
      const uintptr_t address = runs_[run_] + offset_;
      for (uintptr_t line = 0; line < kStep; line += 64) {
        __builtin_prefetch(reinterpret_cast<const void*>(address + line), 0, 2);
      }
      offset_ += kStep;
      if (offset_ >= run_bytes_) {
        offset_ = 0;
        ++run_;
      }
    }
  }

 private:
  uintptr_t runs_[2 * kBlockEntries / kMinPageSize];
  int32_t num_runs_ = 0;
  int32_t run_ = 0;
  uintptr_t offset_ = 0;
  uintptr_t run_bytes_ = kStep;
  float credit_ = 0;
  float rate_ = 0;
};

template <class Element>
class Block {
 public:
  using Storage = typename Element::Storage;
  static constexpr int kLanes = Vec::kLanes;
  static constexpr int kEntries = kBlockEntries;
  static constexpr bool kPacked = Element::kPacked;
  static constexpr int kPack = kPacked ? 2 : 1;  // elements in a 32-bit word of the matrix products

  explicit Block(const TreeAttentionParams& params)
      : params_(params), head_dim_(params.head_dim), words_(params.head_dim / kPack) {}

  // rows: the most that see one block.
  void carve(Carver& carver, int64_t rows) {
    rows_ = rows;
    carver.take(keys_, words_ * kEntries);
    carver.take(values_, head_dim_ * kEntries / kPack);
    carver.take(edge_, head_dim_);
    carver.take(zeros_, kMaxHeadDim);
    carver.take(scores_, rows * kEntries);
    carver.take(probabilities_, kPacked ? rows * kEntries / kPack : 0);
    carver.take(begin_, rows);
    carver.take(end_, rows);
    carver.take(alpha_, rows);
    carver.take(ones_, rows);
    carver.take(max_, rows);
    carver.take(sums_, rows);
    carver.take(query_, rows);
    carver.take(score_, rows);
    carver.take(probability_, rows);
    carver.take(out_, rows);
  }

  void start() {
    std::memset(zeros_, 0, kMaxHeadDim * sizeof(*zeros_));
    for (int64_t i = 0; i < rows_; ++i) {
      ones_[i] = 1.0f;
      score_[i] = scores_ + i * kEntries;
      probability_[i] = kPacked ? probabilities_ + i * (kEntries / kPack) : score_[i];
    }
  }

  // ---- what to work on ----

  void clear_rows() {
    size_ = 0;
    visible_ = 0;
  }

  // A row that sees entries begin to end - 1 of the block. query: [words]; out: [head_dim], max and sums [lanes]: its
  // state. Rows that see the same entries should follow one another.
  void add_row(int32_t begin, int32_t end, const float* query, float* out, float* max, float* sums) {
    visible_ |= (~uint64_t{0} >> (kEntries - (end - begin))) << begin;
    begin_[size_] = begin;
    end_[size_] = end;
    query_[size_] = query;
    out_[size_] = out;
    max_[size_] = max;
    sums_[size_] = sums;
    ++size_;
  }

  bool empty() const { return size_ == 0; }
  // Whether anyone sees one of `count` entries from `entry` on.
  bool visible(int32_t entry, int32_t count) const {
    return ((visible_ >> entry) & (~uint64_t{0} >> (kEntries - count))) != 0;
  }

  // Entries entry to entry + count - 1 lie one after the other.
  void set_entries(int32_t entry, int32_t count, const Storage* keys, const Storage* values) {
    for (int32_t i = 0; i < count; ++i) {
      keys_at_[entry + i] = keys + i * head_dim_;
      values_at_[entry + i] = values + i * head_dim_;
    }
  }
  // Entries that nobody sees read as zeros.
  void hide_entries(int32_t entry, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      keys_at_[entry + i] = reinterpret_cast<const Storage*>(zeros_);
      values_at_[entry + i] = reinterpret_cast<const Storage*>(zeros_);
    }
  }

  // To be told of the block that comes next, in runs of one page or one block, the smaller.
  Prefetcher& prefetcher() { return prefetcher_; }

  // ---- the work ----

  void run(int64_t next_run_bytes) {
    prefetcher_.start(work(), next_run_bytes);
    fill_keys();
    // Vectors of entries that anyone sees; short streams fill a small part of a block.
    const int32_t first = __builtin_ctzll(visible_) / kLanes, last = (63 - __builtin_clzll(visible_)) / kLanes + 1;
    for (int32_t vector = first; vector < last; vector += Vec::kBlockCols) {
      multiply<false>({.a = query_,
                       .c = score_,
                       .alpha = nullptr,
                       .b = keys_ + vector * kLanes,
                       .a_offset = 0,
                       .c_offset = vector * kLanes,
                       .count = words_,
                       .b_stride = kEntries},
                      size_, last - vector < Vec::kBlockCols ? last - vector : Vec::kBlockCols);
    }
    for (int32_t i = 0; i < size_; ++i) softmax(i);
    fill_values();
    for (int32_t i = 0; i < size_;) {
      int32_t run_end = i + 1;
      while (run_end < size_ && begin_[run_end] == begin_[i] && end_[run_end] == end_[i]) ++run_end;
      accumulate(i, run_end);
      i = run_end;
    }
  }

 private:
  // Work is counted in cycles, roughly.
  static constexpr float kFillWork = 6.0f;  // per vector
  static constexpr float kSoftmaxWork = 100.0f;

  float work() const {
    const float vectors = static_cast<float>(words_ * (kEntries / kLanes));
    return vectors * (2 * kFillWork + 2 * static_cast<float>(size_)) + kSoftmaxWork * static_cast<float>(size_);
  }

  // All rows of a column chunk of `cols` vectors.
  template <bool kKeep>
  void multiply(BlockArgs args, int64_t rows, int cols) {
    constexpr int kRows = Vec::kBlockRows;
    for (; rows > 0; rows -= kRows) {
      const int64_t some = rows < kRows ? rows : kRows;
      prefetcher_.advance(static_cast<float>(some * cols * args.count));
      MultiplyBlocks<Element, kKeep>::run(args, some, cols);
      args.a += kRows;
      args.c += kRows;
      if constexpr (kKeep) args.alpha += kRows;
    }
  }

  // Not inlined: on their own these loops keep their pointers in registers.

  // keys_[word][entry]
  [[gnu::noinline]] void fill_keys() {
    const int64_t words = words_;
    for (int32_t entry = 0; entry < kEntries; entry += kLanes) {
      if (!visible(entry, kLanes)) continue;
      const Storage* const* rows = keys_at_ + entry;
      float* target = keys_ + entry;
      for (int64_t word = 0; word < words; word += kLanes, target += kLanes * kEntries) {
        const int64_t count = words - word < kLanes ? words - word : kLanes;
        Float lanes[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          if constexpr (kPacked) {
            lanes[i] = Element::load_words(reinterpret_cast<const float*>(rows[i]) + word, count);
          } else {
            lanes[i] = Element::load(rows[i] + word);
          }
        }
        Vec::transpose(lanes);
        if (count == kLanes) {
          for (int i = 0; i < kLanes; ++i) Vec::store(target + i * kEntries, lanes[i]);
        } else {
          for (int i = 0; i < count; ++i) Vec::store(target + i * kEntries, lanes[i]);
        }
        prefetcher_.advance(kFillWork * kLanes);
      }
    }
  }

  // Column chunks of the values: as wide as a register block, evenly cut. Each lies contiguous, [entry /
  // kPack][column].
  int32_t num_chunks() const {
    const int32_t vectors = static_cast<int32_t>(head_dim_) / kLanes;
    return (vectors + Vec::kBlockCols - 1) / Vec::kBlockCols;
  }
  // First vector of chunk i, 0 <= i <= num_chunks().
  int32_t chunk_begin(int32_t i) const { return static_cast<int32_t>(head_dim_) / kLanes * i / num_chunks(); }

  void fill_values() {
    const int32_t chunks = num_chunks();
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t begin = chunk_begin(chunk), vectors = chunk_begin(chunk + 1) - begin;
      fill_chunk(values_ + static_cast<int64_t>(begin) * kLanes * (kEntries / kPack), begin * kLanes, vectors);
    }
  }

  [[gnu::noinline]] void fill_chunk(float* target, int64_t column, int32_t vectors) {
    constexpr int32_t kStep = 8;  // the smallest page
    for (int32_t first = 0; first < kEntries; first += kStep, target += kStep / kPack * vectors * kLanes) {
      if (!visible(first, kStep)) continue;
      float* row = target;
      for (int32_t entry = first; entry < first + kStep; entry += kPack, row += vectors * kLanes) {
        const Storage* source = values_at_[entry] + column;
        if constexpr (kPacked) {
          Element::interleave(row, source, values_at_[entry + 1] + column, vectors);
        } else {
          for (int32_t j = 0; j < vectors; ++j) Vec::store(row + j * kLanes, Element::load(source + j * kLanes));
        }
      }
      prefetcher_.advance(kFillWork * static_cast<float>(kStep / kPack * vectors));
    }
  }

  // ---- softmax ----

  // Row i of the list: scores to probabilities, and the row's running maximum and sums.
  [[gnu::noinline]] void softmax(int32_t i) {
    constexpr int kVectors = kEntries / kLanes;
    prefetcher_.advance(kSoftmaxWork);
    float* scores = score_[i];
    Float x[kVectors];
    scale_scores(scores, x);
    if (end_[i] - begin_[i] != kEntries) {
      for (int j = 0; j < kVectors; ++j) {
        x[j] = Vec::select_range(begin_[i] - j * kLanes, end_[i] - j * kLanes, x[j], Vec::broadcast(kMinusInfinity));
      }
    }
    Float largest = x[0];
    for (int j = 1; j < kVectors; ++j) largest = Vec::max(largest, x[j]);
    const float block_max = Vec::reduce_max(largest), old_max = *max_[i];
    const float new_max = block_max > old_max ? block_max : old_max;
    const Float shift = Vec::broadcast(new_max);
    const float alpha = new_max == old_max ? 1.0f : exp2_scalar(old_max - new_max);
    *max_[i] = new_max;
    alpha_[i] = alpha;
    Float sum = Vec::zero();
    for (int j = 0; j < kVectors; ++j) {
      x[j] = exp2(Vec::sub(x[j], shift));
      sum = Vec::add(sum, x[j]);
    }
    if constexpr (kPacked) {
      for (int j = 0; j < kVectors; j += 2) Element::store_pairs(probability_[i] + j * (kLanes / 2), x[j], x[j + 1]);
    } else {
      for (int j = 0; j < kVectors; ++j) Vec::store(scores + j * kLanes, x[j]);
    }
    Vec::store(sums_[i], Vec::fma(Vec::load(sums_[i]), Vec::broadcast(alpha), sum));
  }

  // To logits in units of log 2.
  void scale_scores(const float* scores, Float* x) const {
    constexpr int kVectors = kEntries / kLanes;
    if (params_.softcap > 0.0f) {
      const Float inner = Vec::broadcast(params_.scale / params_.softcap);
      const Float outer = Vec::broadcast(params_.softcap * kLog2E);
      for (int j = 0; j < kVectors; ++j) x[j] = Vec::mul(tanh(Vec::mul(Vec::load(scores + j * kLanes), inner)), outer);
    } else {
      const Float factor = Vec::broadcast(params_.scale * kLog2E);
      for (int j = 0; j < kVectors; ++j) x[j] = Vec::mul(Vec::load(scores + j * kLanes), factor);
    }
  }

  // ---- O += P V ----

  // Rows i to end - 1 of the list, which see the same entries.
  void accumulate(int32_t i, int32_t end) {
    const int32_t begin_entry = begin_[i], end_entry = end_[i];
    const int32_t rows = end - i, chunks = num_chunks();
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t begin = chunk_begin(chunk), vectors = chunk_begin(chunk + 1) - begin;
      const int64_t width = static_cast<int64_t>(vectors) * kLanes;
      const float* values = values_ + static_cast<int64_t>(begin) * kLanes * (kEntries / kPack);
      BlockArgs args = {.a = probability_ + i,
                        .c = out_ + i,
                        .alpha = alpha_ + i,
                        .b = values,
                        .a_offset = 0,
                        .c_offset = static_cast<int64_t>(begin) * kLanes,
                        .count = 0,
                        .b_stride = width};
      const auto run = [&](const float* b, int32_t word_begin, int32_t word_end) {
        args.b = b;
        args.a_offset = word_begin;
        args.count = word_end - word_begin;
        multiply<true>(args, rows, vectors);
        args.alpha = ones_;
      };
      if constexpr (kPacked) {
        // Of a pair of which the rows see one entry, the other is zeroed: it may be anything.
        const auto edge = [&](int32_t word, uint32_t mask) {
          Element::mask_words(edge_, values + word * width, width, mask);
          run(edge_, word, word + 1);
        };
        if (begin_entry % 2 != 0) edge(begin_entry / 2, 0xffff0000);
        const int32_t word_begin = (begin_entry + 1) / 2, word_end = end_entry / 2;
        if (word_begin < word_end) run(values + word_begin * width, word_begin, word_end);
        if (end_entry % 2 != 0) edge(end_entry / 2, 0x0000ffff);
      } else {
        run(values + begin_entry * width, begin_entry, end_entry);
      }
    }
  }

  const TreeAttentionParams& params_;
  const int64_t head_dim_;
  const int64_t words_;  // 32-bit words of a key in the matrix product
  int64_t rows_ = 0;

  uint64_t visible_ = 0;  // entries that anyone sees
  const Storage* keys_at_[kEntries];
  const Storage* values_at_[kEntries];
  Prefetcher prefetcher_;

  float* keys_;    // [words][entries]
  float* values_;  // [chunk][entries / kPack][columns of the chunk]
  float* edge_;    // one word of entries of a chunk
  float* zeros_;
  float* scores_;         // [row][entries]
  float* probabilities_;  // [row][entries / kPack]

  // Of each row.
  int32_t size_ = 0;
  int32_t* begin_;
  int32_t* end_;
  float* alpha_;  // what the row's sums so far are multiplied by
  float* ones_;
  float** max_;  // in units of log 2
  float** sums_;
  const float** query_;
  float** score_;
  float** probability_;
  float** out_;
};

}  // namespace
}  // namespace apar::cpu
