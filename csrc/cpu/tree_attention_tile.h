// The attention of one tile for some KV heads. Include after one of vec_*.h; every file that includes it is one
// instruction set.
//
// Packed rows are (row of the tile, query head of the group). The task's KV heads take turns at each block of 64
// entries: theirs lie side by side in a page, so memory is read in long runs, while the state of every KV head and
// packed row stays in cache. Rows that do not see a block are not in its list, so it is an exact no-op for them.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/tree_attention_block.h"

namespace apar::cpu {
namespace {

template <class Element>
class Tile {
  using Storage = typename Element::Storage;
  static constexpr int kLanes = Vec::kLanes;
  static constexpr int kEntries = kBlockEntries;
  static constexpr bool kFloat8 = std::is_same_v<Element, Float8Element>;

 public:
  static int64_t scratch_bytes(const TileProblem& problem) { return Tile(problem).carve(nullptr); }

  static void run(const TileProblem& problem, const TileTask& task, void* scratch) {
    Tile tile(problem);
    tile.carve(scratch);
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
        words_(problem.params.head_dim / Block<Element>::kPack),
        group_(problem.group_size),
        block_(p_.params) {}

  // Lays the scratch arrays out; returns their length in bytes.
  int64_t carve(void* base) {
    Carver carver(base);
    const int64_t rows = static_cast<int64_t>(p_.max_tile_rows) * group_;  // packed
    const int64_t states = rows * p_.heads_per_task;
    block_.carve(carver, rows);
    carver.take(queries_, states * words_);
    carver.take(total_, states * head_dim_);
    carver.take(segment_, states * head_dim_);
    carver.take(total_max_, states);
    carver.take(total_sum_, states);
    carver.take(total_used_, states);
    carver.take(max_, states);
    carver.take(sums_, states * kLanes);
    carver.take(out_, states);
    return carver.bytes();
  }

  void start(const TileTask& task) {
    task_ = task;
    first_row_ = p_.tile_row[task.tile];
    num_packed_ = (p_.tile_row[task.tile + 1] - first_row_) * group_;
    num_states_ = num_packed_ * (task.head_end - task.head_begin);
    std::memset(total_used_, 0, num_states_ * sizeof(*total_used_));
    block_.start();
  }

  // ---- states: one for each KV head of the task and packed row ----

  int64_t row_of(int64_t state) const { return first_row_ + state % num_packed_ / group_; }
  int64_t query_head_of(int64_t state) const {
    return (task_.head_begin + state / num_packed_) * group_ + state % group_;
  }

  // visit(state, query head) for a row and all KV heads of the task.
  template <class Visit>
  void for_each_state(int32_t row, const Visit& visit) const {
    for (int32_t head = task_.head_begin; head < task_.head_end; ++head) {
      const int64_t state = static_cast<int64_t>(head - task_.head_begin) * num_packed_ + (row - first_row_) * group_;
      for (int32_t g = 0; g < group_; ++g) visit(state + g, head * group_ + g);
    }
  }

  // visit(element of queries and outputs)
  template <class Visit>
  void with_query_element(const Visit& visit) const {
    if constexpr (!kFloat8) {
      visit(Element{});
    } else {
      switch (p_.params.type) {
        case ElementType::kFloat16:
          return visit(Float16Element{});
        case ElementType::kBFloat16:
          return visit(BFloat16Element{});
        default:
          return visit(Float32Element{});
      }
    }
  }

  void load_queries() {
    with_query_element([this](auto element) { load_queries_as<decltype(element)>(); });
  }

  template <class QueryElement>
  void load_queries_as() {
    using Query = typename QueryElement::Storage;
    const Query* q = static_cast<const Query*>(p_.params.q);
    for (int64_t state = 0; state < num_states_; ++state) {
      const int64_t head = query_head_of(state);
      const Query* source = q + row_of(state) * p_.params.q_row_stride + head * p_.params.q_head_stride;
      float* target = queries_ + state * words_;
      if constexpr (Element::kPacked) {
        std::memcpy(target, source, head_dim_ * sizeof(Query));
      } else if constexpr (kFloat8) {
        // Scores are linear in the keys' scale.
        const Float scale = Vec::broadcast(p_.params.k_scale == nullptr ? 1.0f : p_.params.k_scale[head / group_]);
        for (int64_t d = 0; d < head_dim_; d += kLanes) {
          Vec::store(target + d, Vec::mul(QueryElement::load(source + d), scale));
        }
      } else {
        for (int64_t d = 0; d < head_dim_; d += kLanes) Vec::store(target + d, QueryElement::load(source + d));
      }
    }
  }

  // ---- the walk ----

  // Entries from the first to the last that a reader of a walk entry sees.
  struct Extent {
    int32_t begin, end;
    int32_t first_segment() const { return begin / kSegmentEntries; }
    int32_t end_segment() const { return (end - 1) / kSegmentEntries + 1; }
  };

  Extent extent(int32_t walk) const {
    Extent result = {INT32_MAX, 0};
    for (int32_t i = p_.walk_reader[walk]; i < p_.walk_reader[walk + 1]; ++i) {
      if (p_.readers[i].begin < result.begin) result.begin = p_.readers[i].begin;
      if (p_.readers[i].end > result.end) result.end = p_.readers[i].end;
    }
    return result;
  }

  void enter_walk(int32_t walk) {
    walk_ = walk;
    extent_ = extent(walk);
    readers_ = p_.readers + p_.walk_reader[walk];
    num_readers_ = p_.walk_reader[walk + 1] - p_.walk_reader[walk];
  }

  void walk_segments() {
    for (int32_t walk = task_.walk_begin; walk <= task_.walk_end; ++walk) {
      if (walk == task_.walk_end && task_.segment_end == 0) break;
      enter_walk(walk);
      const int32_t first = extent_.first_segment(), last = extent_.end_segment();
      const int32_t begin = walk == task_.walk_begin && task_.segment_begin > first ? task_.segment_begin : first;
      const int32_t end = walk == task_.walk_end && task_.segment_end < last ? task_.segment_end : last;
      for (int32_t segment = begin; segment < end; ++segment) {
        if (!start_segment(segment)) continue;
        walk_blocks(segment);
        end_segment(segment);
      }
    }
  }

  static bool sees(const PlanReader& reader, int32_t segment) {
    const int64_t begin = static_cast<int64_t>(segment) * kSegmentEntries;
    return reader.begin < begin + kSegmentEntries && reader.end > begin;
  }

  // Where the partial result of a reader and query head lies.
  float* partial(int32_t segment, int32_t reader, int32_t query_head) const {
    const int64_t record =
        p_.walk_partial[walk_] + static_cast<int64_t>(segment - extent_.first_segment()) * num_readers_ + reader;
    return p_.partials + (record * p_.num_kv_heads * group_ + query_head) * p_.partial_stride;
  }

  // Gives each row that sees the segment an empty state. A row's first segment is accumulated where the total goes.
  bool start_segment(int32_t segment) {
    bool any = false;
    for (int32_t reader = 0; reader < num_readers_; ++reader) {
      if (!sees(readers_[reader], segment)) continue;
      any = true;
      for_each_state(readers_[reader].row, [&](int64_t state, int32_t query_head) {
        out_[state] = task_.kind == TileTask::kPart ? partial(segment, reader, query_head) + kPartialHeader
                                                    : (total_used_[state] ? segment_ : total_) + state * head_dim_;
        std::memset(out_[state], 0, head_dim_ * sizeof(float));
        max_[state] = kMinusInfinity;
        Vec::store(sums_ + state * kLanes, Vec::zero());
      });
    }
    return any;
  }

  void end_segment(int32_t segment) {
    for (int32_t reader = 0; reader < num_readers_; ++reader) {
      if (!sees(readers_[reader], segment)) continue;
      for_each_state(readers_[reader].row, [&](int64_t state, int32_t query_head) {
        const float sum = Vec::reduce_add(Vec::load(sums_ + state * kLanes));
        if (task_.kind == TileTask::kPart) {
          float* record = partial(segment, reader, query_head);
          record[0] = max_[state];
          record[1] = sum;
        } else {
          fold(state, max_[state], sum, out_[state]);
        }
      });
    }
  }

  // total = total (+) (max, sum, out); into an empty total that is a copy.
  void fold(int64_t state, float max, float sum, const float* out) {
    float* total = total_ + state * head_dim_;
    if (!total_used_[state]) {
      total_used_[state] = 1;
      total_max_[state] = max;
      total_sum_[state] = sum;
      if (out != total) std::memcpy(total, out, head_dim_ * sizeof(float));
      return;
    }
    const float new_max = max > total_max_[state] ? max : total_max_[state];
    const float keep = exp2_scalar(total_max_[state] - new_max), take = exp2_scalar(max - new_max);
    total_max_[state] = new_max;
    total_sum_[state] = total_sum_[state] * keep + sum * take;
    const Float keep_all = Vec::broadcast(keep), take_all = Vec::broadcast(take);
    for (int64_t d = 0; d < head_dim_; d += kLanes) {
      const Float kept = Vec::mul(Vec::load(total + d), keep_all);
      Vec::store(total + d, Vec::fma(Vec::load(out + d), take_all, kept));
    }
  }

  void fold_partials() {
    for (int32_t walk = task_.walk_begin; walk < task_.walk_end; ++walk) {
      enter_walk(walk);
      for (int32_t segment = extent_.first_segment(); segment < extent_.end_segment(); ++segment) {
        for (int32_t reader = 0; reader < num_readers_; ++reader) {
          if (!sees(readers_[reader], segment)) continue;
          for_each_state(readers_[reader].row, [&](int64_t state, int32_t query_head) {
            const float* record = partial(segment, reader, query_head);
            fold(state, record[0], record[1], record + kPartialHeader);
          });
        }
      }
    }
  }

  // ---- blocks ----

  void walk_blocks(int32_t segment) {
    constexpr int32_t kSegmentBlocks = kSegmentEntries / kEntries;
    const int32_t last_block = (extent_.end - 1) / kEntries;
    int32_t block = segment * kSegmentBlocks, block_end = block + kSegmentBlocks;
    if (block_end > last_block + 1) block_end = last_block + 1;
    while (block < block_end) {
      for (int32_t head = task_.head_begin; head < task_.head_end; ++head) {
        list_rows(block, head);
        if (block_.empty()) break;
        locate(block, head);
        locate_next(block, head);
        block_.run(run_entries() * head_dim_ * static_cast<int64_t>(sizeof(Storage)));
      }
      block = block_.empty() ? next_seen(block) : block + 1;
    }
  }

  // The first block after this one, which nobody sees, that somebody does see.
  int32_t next_seen(int32_t block) const {
    int32_t next = INT32_MAX;
    for (int32_t reader = 0; reader < num_readers_; ++reader) {
      const int32_t first = readers_[reader].begin / kEntries;
      if (first > block && first < next) next = first;
    }
    return next;
  }

  // The packed rows that see the block, those that see all of it first.
  void list_rows(int32_t block, int32_t head) {
    const int32_t first = block * kEntries;
    block_.clear_rows();
    for (const bool whole : {true, false}) {
      for (int32_t reader = 0; reader < num_readers_; ++reader) {
        const PlanReader& range = readers_[reader];
        const int32_t begin = range.begin > first ? range.begin - first : 0;
        const int32_t end = range.end - first < kEntries ? range.end - first : kEntries;
        if (begin >= end || (end - begin == kEntries) != whole) continue;
        const int64_t state =
            static_cast<int64_t>(head - task_.head_begin) * num_packed_ + (range.row - first_row_) * group_;
        for (int64_t i = state; i < state + group_; ++i) {
          block_.add_row(begin, end, queries_ + i * words_, out_[i], max_ + i, sums_ + i * kLanes);
        }
      }
    }
  }

  // Entries of a block that lie one after the other.
  int32_t run_entries() const { return p_.page_size < kEntries ? p_.page_size : kEntries; }
  const int32_t* pages_of(int32_t walk) const {
    return p_.params.page_table + static_cast<int64_t>(p_.walk_stream[walk]) * p_.max_pages;
  }
  int64_t page_offset(int32_t page, int32_t head, int32_t offset) const {
    return ((static_cast<int64_t>(page) * p_.num_kv_heads + head) * p_.page_size + offset) * head_dim_;
  }

  // Where the block's keys and values lie. Pages that nobody sees are not looked up.
  void locate(int32_t block, int32_t head) {
    const int32_t* pages = pages_of(walk_);
    const int32_t step = run_entries();
    for (int32_t entry = 0; entry < kEntries; entry += step) {
      if (!block_.visible(entry, step)) {
        block_.hide_entries(entry, step);
        continue;
      }
      const int32_t index = block * kEntries + entry;
      const int64_t offset = page_offset(pages[index / p_.page_size], head, index % p_.page_size);
      block_.set_entries(entry, step, static_cast<const Storage*>(p_.params.k_cache) + offset,
                         static_cast<const Storage*>(p_.params.v_cache) + offset);
    }
  }

  // Where that lies which comes next: this block of the next KV head, or the next block, or the next walk entry's first
  // one.
  void locate_next(int32_t block, int32_t head) {
    Prefetcher& next = block_.prefetcher();
    next.clear();
    int32_t walk = walk_, begin = block * kEntries, end = extent_.end;
    if (++head == task_.head_end) {
      head = task_.head_begin;
      begin += kEntries;
      if (begin >= end) {
        if (++walk >= task_.walk_end) return;
        const Extent next_extent = extent(walk);
        begin = next_extent.begin / kEntries * kEntries;
        end = next_extent.end;
      }
    }
    const int32_t* pages = pages_of(walk);
    for (const void* cache : {p_.params.k_cache, p_.params.v_cache}) {
      for (int32_t index = begin; index < end && index < begin + kEntries; index += run_entries()) {
        // An entry of the table that nobody reads may hold any number; then the address is wrong.
        const int64_t offset = page_offset(pages[index / p_.page_size], head, index % p_.page_size);
        next.add(reinterpret_cast<uintptr_t>(cache) + static_cast<uintptr_t>(offset) * sizeof(Storage));
      }
    }
  }

  // ---- results ----

  void finish() {
    with_query_element([this](auto element) { finish_as<decltype(element)>(); });
  }

  template <class OutputElement>
  void finish_as() {
    using Output = typename OutputElement::Storage;
    const int64_t num_q_heads = static_cast<int64_t>(p_.num_kv_heads) * group_;
    for (int64_t state = 0; state < num_states_; ++state) {
      const int64_t query_head = query_head_of(state), index = row_of(state) * num_q_heads + query_head;
      const bool used = total_used_[state] != 0;
      const float sink = p_.params.sinks != nullptr ? p_.params.sinks[query_head] : kMinusInfinity;
      float lse = sink, factor = 0.0f;
      if (used) {
        float max = total_max_[state], sum = total_sum_[state], keep = 1.0f;
        if (sink != kMinusInfinity) {
          const float logit = sink * kLog2E, new_max = logit > max ? logit : max;
          keep = exp2_scalar(max - new_max);
          sum = sum * keep + exp2_scalar(logit - new_max);
          max = new_max;
        }
        factor = keep / sum;
        if (kFloat8 && p_.params.v_scale != nullptr) factor *= p_.params.v_scale[query_head / group_];
        lse = (max + std::log2(sum)) * kLn2;
      }
      if (p_.params.lse != nullptr) p_.params.lse[index] = lse;
      Output* out = static_cast<Output*>(p_.params.out) + index * head_dim_;
      const float* total = total_ + state * head_dim_;
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        OutputElement::store(out + d, used ? Vec::mul(Vec::load(total + d), Vec::broadcast(factor)) : Vec::zero());
      }
    }
  }

  const TileProblem& p_;
  TileTask task_;
  const int64_t head_dim_;
  const int64_t words_;
  const int32_t group_;
  int32_t first_row_ = 0;
  int32_t num_packed_ = 0;
  int64_t num_states_ = 0;
  Block<Element> block_;

  // The current walk entry.
  int32_t walk_ = 0;
  Extent extent_{};
  const PlanReader* readers_ = nullptr;
  int32_t num_readers_ = 0;

  // Of each state.
  float* queries_;    // [words]
  float* total_;      // [head_dim], with total_max_ and total_sum_: the fold of all segments so far
  float* segment_;    // [head_dim]
  float* total_max_;  // in units of log 2
  float* total_sum_;
  int32_t* total_used_;
  float* max_;   // of the current segment
  float* sums_;  // [lanes]
  float** out_;  // the current segment's O
};

template <class Element>
constexpr TileKernel kTileKernel = {Tile<Element>::scratch_bytes, Tile<Element>::run};

inline TileKernel widening_kernel(ElementType kv_type) {
  switch (kv_type) {
    case ElementType::kFloat8:
      return kTileKernel<Float8Element>;
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
