// The attention of one tile for one KV head. Include after one of vec_*.h; every file that includes it is one
// instruction set.
//
// Packed rows are (row of the tile, query head of the group). For each block of 64 entries that anyone sees:
//   keys are transposed into scratch (entries across the lanes) -> S = Q K^T for the packed rows that see the block ->
//   online softmax per row -> values are laid into scratch (head_dim across the lanes) -> O += P V over exactly the
//   entries that a row sees
// Rows that do not see the block are not in the block's list, so it is an exact no-op for them; entries that a row does
// not see are replaced before they count, so that even NaN there changes nothing.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/tree_attention_elements.h"
#include "cpu/tree_attention_kernel.h"
#include "cpu/tree_attention_math.h"

namespace apar::cpu {
namespace {

template <class Element>
class Tile {
  using Storage = typename Element::Storage;
  static constexpr int kLanes = Vec::kLanes;
  static constexpr int kEntries = kBlockEntries;
  static constexpr bool kPacked = Element::kPacked;
  static constexpr int kPack = kPacked ? 2 : 1;  // elements in a 32-bit word of the matrix products

 public:
  static int64_t scratch_bytes(const TileProblem& problem) {
    Tile tile(problem);
    return tile.carve(nullptr);
  }

  static void run(const TileProblem& problem, const TileTask& task, void* scratch) {
    Tile tile(problem);
    tile.carve(static_cast<char*>(scratch));
    tile.start(task);
    if (task.kind == TileTask::kFold) {
      tile.fold_partials();
    } else {
      tile.load_queries();
      tile.walk_segments();
    }
    if (task.kind != TileTask::kPart) tile.finish();
  }

 private:
  explicit Tile(const TileProblem& problem)
      : p_(problem),
        head_dim_(problem.params.head_dim),
        group_(problem.group_size),
        words_(problem.params.head_dim / kPack) {}

  // ---- scratch ----

  // Lays the scratch arrays out from base on; returns their length in bytes.
  int64_t carve(char* base) {
    int64_t offset = 0;
    const auto take = [&offset, base](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base == nullptr ? nullptr : base + offset);
      offset += (count * static_cast<int64_t>(sizeof(*pointer)) + 63) / 64 * 64;
    };
    const int64_t rows = static_cast<int64_t>(p_.max_tile_rows) * group_;
    take(keys_, words_ * kEntries);
    take(values_, head_dim_ * kEntries / kPack);
    take(edge_, head_dim_);
    take(zeros_, kMaxHeadDim);
    take(scores_, rows * kEntries);
    if (kPacked) take(probabilities_, rows * kEntries / kPack);
    take(queries_, rows * words_);
    take(total_, rows * head_dim_);
    take(segment_, rows * head_dim_);
    take(total_max_, rows);
    take(total_sum_, rows);
    take(total_used_, rows);
    take(row_max_, rows);
    take(row_sums_, rows * kLanes);
    take(row_out_, rows);
    take(list_packed_, rows);
    take(list_begin_, rows);
    take(list_end_, rows);
    take(list_alpha_, rows);
    take(ones_, rows);
    take(list_query_, rows);
    take(list_score_, rows);
    take(list_probability_, rows);
    take(list_out_, rows);
    return offset;
  }

  void start(const TileTask& task) {
    task_ = task;
    first_row_ = p_.tile_row[task.tile];
    num_packed_ = (p_.tile_row[task.tile + 1] - first_row_) * group_;
    std::memset(total_used_, 0, num_packed_ * sizeof(*total_used_));
    std::memset(zeros_, 0, kMaxHeadDim * sizeof(*zeros_));
    for (int32_t i = 0; i < num_packed_; ++i) {
      ones_[i] = 1.0f;
      list_score_[i] = scores_ + static_cast<int64_t>(i) * kEntries;
      list_probability_[i] = kPacked ? probabilities_ + static_cast<int64_t>(i) * (kEntries / kPack) : list_score_[i];
    }
  }

  void load_queries() {
    const Storage* q = static_cast<const Storage*>(p_.params.q);
    for (int32_t i = 0; i < num_packed_; ++i) {
      const int64_t row = first_row_ + i / group_, head = static_cast<int64_t>(task_.kv_head) * group_ + i % group_;
      const Storage* source = q + row * p_.params.q_row_stride + head * p_.params.q_head_stride;
      float* target = queries_ + i * words_;
      if constexpr (kPacked) {
        std::memcpy(target, source, head_dim_ * sizeof(Storage));
      } else {
        for (int64_t d = 0; d < head_dim_; d += kLanes) Vec::store(target + d, Element::load(source + d));
      }
    }
  }

  // ---- the walk ----

  void walk_segments() {
    for (int32_t walk = task_.walk_begin; walk <= task_.walk_end; ++walk) {
      if (walk == task_.walk_end && task_.segment_end == 0) break;
      readers_ = p_.readers + p_.walk_reader[walk];
      num_readers_ = p_.walk_reader[walk + 1] - p_.walk_reader[walk];
      int32_t low, high;
      extent(walk, low, high);
      const int32_t first = low / kSegmentEntries, last = (high - 1) / kSegmentEntries + 1;
      const int32_t begin = walk == task_.walk_begin && task_.segment_begin > first ? task_.segment_begin : first;
      const int32_t end = walk == task_.walk_end && task_.segment_end < last ? task_.segment_end : last;
      for (int32_t segment = begin; segment < end; ++segment) {
        if (!start_segment(walk, segment, first)) continue;
        walk_blocks(walk, segment, high);
        end_segment(walk, segment, first);
      }
    }
  }

  // Entries from the first to the last that a reader of the walk entry sees.
  void extent(int32_t walk, int32_t& low, int32_t& high) const {
    low = INT32_MAX;
    high = 0;
    for (int32_t i = p_.walk_reader[walk]; i < p_.walk_reader[walk + 1]; ++i) {
      low = p_.readers[i].begin < low ? p_.readers[i].begin : low;
      high = p_.readers[i].end > high ? p_.readers[i].end : high;
    }
  }

  bool sees(const PlanReader& reader, int64_t begin, int64_t end) const {
    return reader.begin < end && reader.end > begin;
  }

  float* partial(int32_t walk, int32_t segment, int32_t first_segment, int32_t reader, int32_t head) const {
    const int64_t record =
        p_.walk_partial[walk] + static_cast<int64_t>(segment - first_segment) * num_readers_ + reader;
    return p_.partials + (task_.kv_head * p_.partials_per_head + record * group_ + head) * p_.partial_stride;
  }

  // Gives each row that sees the segment an empty state. A row's first segment is accumulated where the total goes.
  bool start_segment(int32_t walk, int32_t segment, int32_t first_segment) {
    const int64_t begin = static_cast<int64_t>(segment) * kSegmentEntries, end = begin + kSegmentEntries;
    bool any = false;
    for (int32_t reader = 0; reader < num_readers_; ++reader) {
      if (!sees(readers_[reader], begin, end)) continue;
      any = true;
      for (int32_t g = 0; g < group_; ++g) {
        const int64_t i = static_cast<int64_t>(readers_[reader].row - first_row_) * group_ + g;
        row_out_[i] = task_.kind == TileTask::kPart ? partial(walk, segment, first_segment, reader, g) + kPartialHeader
                                                    : (total_used_[i] ? segment_ : total_) + i * head_dim_;
        std::memset(row_out_[i], 0, head_dim_ * sizeof(float));
        row_max_[i] = kMinusInfinity;
        Vec::store(row_sums_ + i * kLanes, Vec::zero());
      }
    }
    return any;
  }

  void end_segment(int32_t walk, int32_t segment, int32_t first_segment) {
    const int64_t begin = static_cast<int64_t>(segment) * kSegmentEntries, end = begin + kSegmentEntries;
    for (int32_t reader = 0; reader < num_readers_; ++reader) {
      if (!sees(readers_[reader], begin, end)) continue;
      for (int32_t g = 0; g < group_; ++g) {
        const int64_t i = static_cast<int64_t>(readers_[reader].row - first_row_) * group_ + g;
        const float sum = Vec::reduce_add(Vec::load(row_sums_ + i * kLanes));
        if (task_.kind == TileTask::kPart) {
          float* record = partial(walk, segment, first_segment, reader, g);
          record[0] = row_max_[i];
          record[1] = sum;
        } else {
          fold(i, row_max_[i], sum, row_out_[i]);
        }
      }
    }
  }

  // total = total (+) (max, sum, out); into an empty total that is a copy.
  void fold(int64_t i, float max, float sum, const float* out) {
    float* total = total_ + i * head_dim_;
    if (!total_used_[i]) {
      total_used_[i] = 1;
      total_max_[i] = max;
      total_sum_[i] = sum;
      if (out != total) std::memcpy(total, out, head_dim_ * sizeof(float));
      return;
    }
    const float new_max = max > total_max_[i] ? max : total_max_[i];
    const float keep = exp2_scalar(total_max_[i] - new_max), take = exp2_scalar(max - new_max);
    total_max_[i] = new_max;
    total_sum_[i] = total_sum_[i] * keep + sum * take;
    const Float keep_all = Vec::broadcast(keep), take_all = Vec::broadcast(take);
    for (int64_t d = 0; d < head_dim_; d += kLanes) {
      const Float kept = Vec::mul(Vec::load(total + d), keep_all);
      Vec::store(total + d, Vec::fma(Vec::load(out + d), take_all, kept));
    }
  }

  void fold_partials() {
    for (int32_t walk = task_.walk_begin; walk < task_.walk_end; ++walk) {
      readers_ = p_.readers + p_.walk_reader[walk];
      num_readers_ = p_.walk_reader[walk + 1] - p_.walk_reader[walk];
      int32_t low, high;
      extent(walk, low, high);
      const int32_t first = low / kSegmentEntries, last = (high - 1) / kSegmentEntries;
      for (int32_t segment = first; segment <= last; ++segment) {
        const int64_t begin = static_cast<int64_t>(segment) * kSegmentEntries, end = begin + kSegmentEntries;
        for (int32_t reader = 0; reader < num_readers_; ++reader) {
          if (!sees(readers_[reader], begin, end)) continue;
          for (int32_t g = 0; g < group_; ++g) {
            const float* record = partial(walk, segment, first, reader, g);
            fold(static_cast<int64_t>(readers_[reader].row - first_row_) * group_ + g, record[0], record[1],
                 record + kPartialHeader);
          }
        }
      }
    }
  }

  // ---- blocks ----

  void walk_blocks(int32_t walk, int32_t segment, int32_t high) {
    const int32_t segment_block = segment * (kSegmentEntries / kEntries);
    const int32_t last_block = (high - 1) / kEntries;
    int32_t block_end = segment_block + kSegmentEntries / kEntries;
    if (block_end > last_block + 1) block_end = last_block + 1;
    for (int32_t block = segment_block; block < block_end; ++block) {
      int32_t next_seen;
      if (!list_rows(block, next_seen)) {
        if (next_seen >= block_end) break;
        block = next_seen - 1;
        continue;
      }
      locate(walk, block);
      locate_next(walk, block, high);
      fill_keys();
      for (int32_t column = 0; column < kEntries; column += kLanes * Vec::kBlockCols) {
        MultiplyRows<Element, false>::run({.a = list_query_,
                                           .c = list_score_,
                                           .alpha = nullptr,
                                           .b = keys_ + column,
                                           .a_offset = 0,
                                           .c_offset = column,
                                           .count = words_,
                                           .b_stride = kEntries},
                                          list_size_, Vec::kBlockCols);
      }
      for (int32_t i = 0; i < list_size_; ++i) softmax(i);
      fill_values();
      for (int32_t i = 0; i < list_size_;) {
        int32_t run_end = i + 1;
        while (run_end < list_size_ && list_begin_[run_end] == list_begin_[i] && list_end_[run_end] == list_end_[i])
          ++run_end;
        accumulate(i, run_end);
        i = run_end;
      }
    }
  }

  // Lists the packed rows that see the block, those that see all of it first, and marks the entries that anyone sees.
  // Returns whether anyone does; else next_seen is the next block that someone does see.
  bool list_rows(int32_t block, int32_t& next_seen) {
    const int32_t first = block * kEntries;
    list_size_ = 0;
    visible_ = 0;
    next_seen = INT32_MAX;
    for (const bool whole : {true, false}) {
      for (int32_t reader = 0; reader < num_readers_; ++reader) {
        const PlanReader& range = readers_[reader];
        const int32_t begin = range.begin > first ? range.begin - first : 0;
        const int32_t end = range.end - first < kEntries ? range.end - first : kEntries;
        if (begin >= kEntries && range.begin / kEntries < next_seen) next_seen = range.begin / kEntries;
        if (begin >= end || (end - begin == kEntries) != whole) continue;
        visible_ |= (~uint64_t{0} >> (kEntries - (end - begin))) << begin;
        const int32_t packed = (range.row - first_row_) * group_;
        for (int32_t g = 0; g < group_; ++g) {
          list_packed_[list_size_] = packed + g;
          list_begin_[list_size_] = begin;
          list_end_[list_size_] = end;
          list_query_[list_size_] = queries_ + (packed + g) * words_;
          list_out_[list_size_] = row_out_[packed + g];
          ++list_size_;
        }
      }
    }
    return list_size_ > 0;
  }

  int64_t page_offset(int32_t page, int32_t offset) const {
    return ((static_cast<int64_t>(page) * p_.num_kv_heads + task_.kv_head) * p_.page_size + offset) * head_dim_;
  }

  // Where the block's keys and values lie. Pages that nobody sees are not looked up; their entries point to zeros.
  void locate(int32_t walk, int32_t block) {
    const int32_t* pages = p_.params.page_table + static_cast<int64_t>(p_.walk_stream[walk]) * p_.max_pages;
    const int32_t step = p_.page_size < kEntries ? p_.page_size : kEntries;
    const uint64_t page_mask = ~uint64_t{0} >> (kEntries - step);
    for (int32_t entry = 0; entry < kEntries; entry += step) {
      const Storage* key = reinterpret_cast<const Storage*>(zeros_);
      const Storage* value = key;
      int64_t stride = 0;
      if ((visible_ >> entry) & page_mask) {
        const int32_t index = block * kEntries + entry;
        const int64_t offset = page_offset(pages[index / p_.page_size], index % p_.page_size);
        key = static_cast<const Storage*>(p_.params.k_cache) + offset;
        value = static_cast<const Storage*>(p_.params.v_cache) + offset;
        stride = head_dim_;
      }
      for (int32_t i = 0; i < step; ++i) {
        keys_at_[entry + i] = key + i * stride;
        values_at_[entry + i] = value + i * stride;
      }
    }
  }

  // Where the next block that the walk will probably meet lies, to fetch it while this one is worked on.
  void locate_next(int32_t walk, int32_t block, int32_t high) {
    int32_t low = (block + 1) * kEntries;
    if (low >= high) {
      if (++walk >= task_.walk_end) {
        for (int32_t entry = 0; entry < kEntries; ++entry) {
          next_keys_at_[entry] = reinterpret_cast<uintptr_t>(zeros_);
          next_values_at_[entry] = reinterpret_cast<uintptr_t>(zeros_);
        }
        return;
      }
      extent(walk, low, high);
      low = low / kEntries * kEntries;
    }
    const int32_t* pages = p_.params.page_table + static_cast<int64_t>(p_.walk_stream[walk]) * p_.max_pages;
    const int32_t step = p_.page_size < kEntries ? p_.page_size : kEntries;
    const uintptr_t keys = reinterpret_cast<uintptr_t>(p_.params.k_cache);
    const uintptr_t values = reinterpret_cast<uintptr_t>(p_.params.v_cache);
    for (int32_t entry = 0; entry < kEntries; entry += step) {
      uintptr_t offset = 0;
      const int32_t index = low + entry;
      // An unused entry of the table may hold any number: only addresses are made of it, which may be wrong.
      if (index < high) {
        offset =
            static_cast<uintptr_t>(page_offset(pages[index / p_.page_size], index % p_.page_size)) * sizeof(Storage);
      }
      for (int32_t i = 0; i < step; ++i) {
        next_keys_at_[entry + i] = keys + offset + i * (head_dim_ * sizeof(Storage));
        next_values_at_[entry + i] = values + offset + i * (head_dim_ * sizeof(Storage));
      }
    }
  }

  static void prefetch(uintptr_t address) { __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2); }

  // keys_[word][entry]
  void fill_keys() {
    for (int32_t entry = 0; entry < kEntries; entry += kLanes) {
      if (((visible_ >> entry) & (~uint64_t{0} >> (kEntries - kLanes))) == 0) continue;
      for (int64_t word = 0; word < words_; word += kLanes) {
        Float lanes[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          if constexpr (kPacked) {
            lanes[i] = Element::load_words(reinterpret_cast<const float*>(keys_at_[entry + i]) + word, words_ - word);
          } else {
            lanes[i] = Element::load(keys_at_[entry + i] + word);
          }
          prefetch(next_keys_at_[entry + i] + word * kPack * sizeof(Storage));
        }
        Vec::transpose(lanes);
        const int64_t count = words_ - word < kLanes ? words_ - word : kLanes;
        float* target = keys_ + word * kEntries + entry;
        if (count == kLanes) {
          for (int i = 0; i < kLanes; ++i) Vec::store(target + i * kEntries, lanes[i]);
        } else {
          for (int i = 0; i < count; ++i) Vec::store(target + i * kEntries, lanes[i]);
        }
      }
    }
  }

  // Column chunks of the values: as wide as a register block, evenly cut. A chunk lies contiguous: [entry
  // (pair)][column].
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
      float* target = values_ + static_cast<int64_t>(begin) * kLanes * (kEntries / kPack);
      for (int32_t entry = 0; entry < kEntries; entry += kPack, target += vectors * kLanes) {
        if (((visible_ >> entry) & (kPack == 2 ? 3 : 1)) == 0) continue;
        for (int32_t j = 0; j < vectors; ++j) {
          const int64_t column = (begin + j) * kLanes;
          if constexpr (kPacked) {
            Vec::store(target + j * kLanes,
                       Element::interleave(values_at_[entry] + column, values_at_[entry + 1] + column));
            prefetch(next_values_at_[entry + j % 2] + (column + (j % 2 == 0 ? 0 : -kLanes)) * sizeof(Storage));
          } else {
            Vec::store(target + j * kLanes, Element::load(values_at_[entry] + column));
            prefetch(next_values_at_[entry] + column * sizeof(Storage));
          }
        }
      }
    }
  }

  // ---- softmax ----

  // Row i of the list: scores to probabilities, and the row's running maximum and sums.
  void softmax(int32_t i) {
    constexpr int kVectors = kEntries / kLanes;
    const int32_t packed = list_packed_[i];
    float* scores = list_score_[i];
    Float x[kVectors];
    scale_scores(scores, x);
    if (list_end_[i] - list_begin_[i] != kEntries) {
      for (int j = 0; j < kVectors; ++j) {
        x[j] = Vec::select_range(list_begin_[i] - j * kLanes, list_end_[i] - j * kLanes, x[j],
                                 Vec::broadcast(kMinusInfinity));
      }
    }
    Float largest = x[0];
    for (int j = 1; j < kVectors; ++j) largest = Vec::max(largest, x[j]);
    const float block_max = Vec::reduce_max(largest), old_max = row_max_[packed];
    const float new_max = block_max > old_max ? block_max : old_max;
    const Float shift = Vec::broadcast(new_max);
    const float alpha = new_max == old_max ? 1.0f : exp2_scalar(old_max - new_max);
    row_max_[packed] = new_max;
    list_alpha_[i] = alpha;
    Float sum = Vec::zero();
    for (int j = 0; j < kVectors; ++j) {
      x[j] = exp2(Vec::sub(x[j], shift));
      sum = Vec::add(sum, x[j]);
    }
    if constexpr (kPacked) {
      for (int j = 0; j < kVectors; j += 2)
        Element::store_pairs(list_probability_[i] + j * (kLanes / 2), x[j], x[j + 1]);
    } else {
      for (int j = 0; j < kVectors; ++j) Vec::store(scores + j * kLanes, x[j]);
    }
    float* sums = row_sums_ + static_cast<int64_t>(packed) * kLanes;
    Vec::store(sums, Vec::fma(Vec::load(sums), Vec::broadcast(alpha), sum));
  }

  // To logits in units of log 2.
  void scale_scores(const float* scores, Float* x) const {
    constexpr int kVectors = kEntries / kLanes;
    if (p_.params.softcap > 0.0f) {
      const Float inner = Vec::broadcast(p_.params.scale / p_.params.softcap);
      const Float outer = Vec::broadcast(p_.params.softcap * kLog2E);
      for (int j = 0; j < kVectors; ++j) x[j] = Vec::mul(tanh(Vec::mul(Vec::load(scores + j * kLanes), inner)), outer);
    } else {
      const Float factor = Vec::broadcast(p_.params.scale * kLog2E);
      for (int j = 0; j < kVectors; ++j) x[j] = Vec::mul(Vec::load(scores + j * kLanes), factor);
    }
  }

  // ---- O += P V ----

  // Rows i to end - 1 of the list, which see the same entries.
  void accumulate(int32_t i, int32_t end) {
    const int32_t begin_entry = list_begin_[i], end_entry = list_end_[i];
    const int32_t rows = end - i, chunks = num_chunks();
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t begin = chunk_begin(chunk), vectors = chunk_begin(chunk + 1) - begin;
      const int64_t width = static_cast<int64_t>(vectors) * kLanes;
      const float* values = values_ + static_cast<int64_t>(begin) * kLanes * (kEntries / kPack);
      BlockArgs args = {.a = list_probability_ + i,
                        .c = list_out_ + i,
                        .alpha = list_alpha_ + i,
                        .b = values,
                        .a_offset = 0,
                        .c_offset = static_cast<int64_t>(begin) * kLanes,
                        .count = 0,
                        .b_stride = width};
      const auto run = [&](const float* b, int32_t word_begin, int32_t word_end) {
        args.b = b;
        args.a_offset = word_begin;
        args.count = word_end - word_begin;
        MultiplyRows<Element, true>::run(args, rows, vectors);
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

  // ---- results ----

  void finish() {
    Storage* out = static_cast<Storage*>(p_.params.out);
    const int64_t num_q_heads = static_cast<int64_t>(p_.num_kv_heads) * group_;
    for (int32_t i = 0; i < num_packed_; ++i) {
      const int64_t row = first_row_ + i / group_, head = static_cast<int64_t>(task_.kv_head) * group_ + i % group_;
      float max = total_used_[i] ? total_max_[i] : kMinusInfinity, sum = total_used_[i] ? total_sum_[i] : 0.0f,
            factor = 0.0f;
      float lse = kMinusInfinity;
      const float sink = p_.params.sinks != nullptr ? p_.params.sinks[head] : kMinusInfinity;
      if (!total_used_[i]) {
        lse = sink;
      } else {
        float keep = 1.0f;
        if (sink != kMinusInfinity) {
          const float logit = sink * kLog2E, new_max = logit > max ? logit : max;
          keep = exp2_scalar(max - new_max);
          sum = sum * keep + exp2_scalar(logit - new_max);
          max = new_max;
        }
        factor = keep / sum;
        lse = (max + std::log2(sum)) * kLn2;
      }
      if (p_.params.lse != nullptr) p_.params.lse[row * num_q_heads + head] = lse;
      Storage* target = out + (row * num_q_heads + head) * head_dim_;
      const float* total = total_used_[i] ? total_ + static_cast<int64_t>(i) * head_dim_ : nullptr;
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        Element::store(target + d,
                       total == nullptr ? Vec::zero() : Vec::mul(Vec::load(total + d), Vec::broadcast(factor)));
      }
    }
  }

  const TileProblem& p_;
  TileTask task_;
  const int64_t head_dim_;
  const int32_t group_;
  const int64_t words_;  // 32-bit words of a key in the matrix product
  int32_t first_row_ = 0;
  int32_t num_packed_ = 0;

  const PlanReader* readers_ = nullptr;  // of the current walk entry
  int32_t num_readers_ = 0;

  // The current block.
  uint64_t visible_ = 0;  // entries that anyone sees
  const Storage* keys_at_[kEntries];
  const Storage* values_at_[kEntries];
  uintptr_t next_keys_at_[kEntries];
  uintptr_t next_values_at_[kEntries];
  float* keys_;    // [words][entries]
  float* values_;  // [chunk][entries / kPack][columns of the chunk]
  float* edge_;
  float* zeros_;
  float* scores_;         // [list][entries]
  float* probabilities_;  // [list][entries / kPack]
  int32_t list_size_ = 0;
  int32_t* list_packed_;  // packed rows that see the block
  int32_t* list_begin_;   // entries of the block that they see
  int32_t* list_end_;
  float* list_alpha_;
  float* ones_;
  const float** list_query_;
  float** list_score_;
  float** list_probability_;
  float** list_out_;

  // Per packed row.
  float* queries_;    // [packed][words]
  float* total_;      // [packed][head_dim], with total_max_, total_sum_: the fold of all segments so far
  float* segment_;    // [packed][head_dim]
  float* total_max_;  // in units of log 2
  float* total_sum_;
  int32_t* total_used_;
  float* row_max_;   // of the current segment
  float* row_sums_;  // [packed][lanes]
  float** row_out_;
};

template <class Element>
constexpr TileKernel kTileKernel = {Tile<Element>::scratch_bytes, Tile<Element>::run};

inline TileKernel widening_kernel(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return kTileKernel<Float16Element>;
    case ElementType::kBFloat16:
      return kTileKernel<BFloat16Element>;
    default:
      return kTileKernel<Float32Element>;
  }
}

}  // namespace
}  // namespace apar::cpu
