#include "cpu/tree_attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "cpu/tree_attention_kernel.h"

namespace apar::cpu {
namespace {

TileKernel choose_kernel(CpuLevel level, ElementType type) {
#if defined(__x86_64__)
  switch (level) {
    case CpuLevel::kAvx512Bf16:
      if (type == ElementType::kBFloat16) return tile_kernel_avx512bf16(type);
      [[fallthrough]];
    case CpuLevel::kAvx512:
      return tile_kernel_avx512(type);
    case CpuLevel::kAvx2:
      return tile_kernel_avx2(type);
    default:
      break;
  }
#endif
  (void)level;
  return tile_kernel_portable(type);
}

// 64-byte aligned memory that a thread keeps between calls, since fresh pages cost more than a small attention does.
class Scratch {
 public:
  void* get(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
      std::memset(memory_.get(), 0, static_cast<size_t>(size_));
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0;
};

// Costs in cycles, roughly: they only decide how work is shared out, never what is computed.
struct CostModel {
  double fill;  // per block
  double row;   // per packed row and block
  explicit CostModel(const TreeAttentionParams& params)
      : fill(40.0 * params.head_dim), row(8.0 * params.head_dim + 150) {}
};

struct Extent {
  int32_t first;  // segments first to last of the stream hold what the readers see
  int32_t last;
  double cost;  // of one KV head
  double segment_cost() const { return cost / (last - first + 1); }
};

class Driver {
 public:
  Driver(const TreeAttentionParams& params, const ParallelFor& parallel_for)
      : plan_(params.schedule), parallel_for_(parallel_for), num_threads_(params.num_threads) {
    problem_ = {.params = params,
                .tile_row = plan_.tile_row,
                .tile_walk = plan_.tile_walk,
                .walk_stream = plan_.walk_stream,
                .walk_reader = plan_.walk_reader,
                .readers = plan_.readers,
                .max_pages = plan_.header->max_pages,
                .num_kv_heads = plan_.header->num_kv_heads,
                .group_size = plan_.header->group_size,
                .page_size = plan_.header->page_size,
                .max_tile_rows = plan_.header->max_tile_rows,
                .heads_per_task = 1,
                .partials = nullptr,
                .walk_partial = nullptr,
                .partial_stride = kPartialHeader + params.head_dim};
    kernel_ = choose_kernel(params.level, params.kv_type);
  }

  void run() {
    if (plan_.header->num_rows == 0) return;
    double total = 0, largest = 0;  // of one KV head; largest: of what cannot be cut
    extents_.reserve(static_cast<size_t>(plan_.header->num_walk));
    for (int32_t walk = 0; walk < plan_.header->num_walk; ++walk) {
      extents_.push_back(extent(walk));
      total += extents_.back().cost;
      largest = std::max(largest, extents_.back().segment_cost());
    }
    // Below this, waking threads costs more than they save.
    constexpr double kSerialCycles = 60e3;
    if (total * problem_.num_kv_heads < kSerialCycles) num_threads_ = 1;

    // Many KV heads in a task read memory in long runs; their state must stay in the cache, and every thread wants
    // work.
    const int64_t packed_rows = static_cast<int64_t>(problem_.max_tile_rows) * problem_.group_size;
    int64_t heads = std::clamp<int64_t>(kMaxPackedRows / packed_rows, 1, problem_.num_kv_heads);
    const double wanted = num_threads_ > 1 ? 2.0 * num_threads_ : 1.0;
    while (heads > 1 && total * problem_.num_kv_heads < wanted * largest * static_cast<double>(heads)) {
      heads = (heads + 1) / 2;
    }
    problem_.heads_per_task = static_cast<int32_t>(heads);
    scratch_bytes_ = kernel_.scratch_bytes(problem_);

    share_out(total * problem_.num_kv_heads / wanted);
    run_tasks(tasks_);
    run_tasks(folds_);
  }

 private:
  Extent extent(int32_t walk) const {
    const CostModel cost(problem_.params);
    int32_t low = INT32_MAX, high = 0;
    int64_t row_blocks = 0;
    for (int32_t i = plan_.walk_reader[walk]; i < plan_.walk_reader[walk + 1]; ++i) {
      const PlanReader& reader = plan_.readers[i];
      low = std::min(low, reader.begin);
      high = std::max(high, reader.end);
      row_blocks += (reader.end - 1) / kBlockEntries - reader.begin / kBlockEntries + 1;
    }
    const int64_t blocks = (high - 1) / kBlockEntries - low / kBlockEntries + 1;
    return {low / kSegmentEntries, (high - 1) / kSegmentEntries,
            cost.fill * static_cast<double>(blocks) + cost.row * static_cast<double>(row_blocks * problem_.group_size)};
  }

  // One task per tile and heads_per_task KV heads; tiles that cost more than the target are cut between segments.
  void share_out(double target) {
    const int32_t num_tiles = plan_.header->num_tiles, heads = problem_.heads_per_task;
    std::vector<std::vector<TileTask>> parts(static_cast<size_t>(num_tiles));
    bool any_cut = false;
    for (int32_t tile = 0; tile < num_tiles; ++tile) {
      if (num_threads_ > 1) parts[tile] = cut(tile, target / heads);
      any_cut = any_cut || parts[tile].size() > 1;
    }
    for (int32_t head = 0; head < problem_.num_kv_heads; head += heads) {
      const int32_t head_end = std::min(head + heads, problem_.num_kv_heads);
      for (int32_t tile = 0; tile < num_tiles; ++tile) {
        const auto whole = [&](TileTask::Kind kind) -> TileTask {
          return {kind, tile, head, head_end, plan_.tile_walk[tile], 0, plan_.tile_walk[tile + 1], 0};
        };
        if (parts[tile].size() <= 1) {
          tasks_.push_back(whole(TileTask::kWhole));
          continue;
        }
        for (TileTask part : parts[tile]) {
          part.head_begin = head;
          part.head_end = head_end;
          tasks_.push_back(part);
        }
        folds_.push_back(whole(TileTask::kFold));
      }
    }
    if (any_cut) allocate_partials(parts);
  }

  // Parts of a tile of about the target's cost for one KV head, at least a segment each.
  std::vector<TileTask> cut(int32_t tile, double target) const {
    std::vector<TileTask> parts;
    TileTask part = {TileTask::kPart, tile, 0, 0, plan_.tile_walk[tile], 0, 0, 0};
    double cost = 0;
    const auto close = [&](int32_t walk, int32_t segment) {
      part.walk_end = walk;
      part.segment_end = segment;
      parts.push_back(part);
      part.walk_begin = walk;
      part.segment_begin = segment;
      cost = 0;
    };
    for (int32_t walk = plan_.tile_walk[tile]; walk < plan_.tile_walk[tile + 1]; ++walk) {
      const Extent& extent = extents_[walk];
      for (int32_t segment = extent.first; segment <= extent.last; ++segment) {
        if (cost > 0 && cost + extent.segment_cost() > target) close(walk, segment == extent.first ? 0 : segment);
        cost += extent.segment_cost();
      }
    }
    close(plan_.tile_walk[tile + 1], 0);
    return parts;
  }

  void allocate_partials(const std::vector<std::vector<TileTask>>& parts) {
    walk_partial_.assign(extents_.size(), 0);
    int64_t records = 0;
    for (size_t tile = 0; tile < parts.size(); ++tile) {
      if (parts[tile].size() <= 1) continue;
      for (int32_t walk = plan_.tile_walk[tile]; walk < plan_.tile_walk[tile + 1]; ++walk) {
        walk_partial_[walk] = records;
        const int64_t readers = plan_.walk_reader[walk + 1] - plan_.walk_reader[walk];
        records += readers * (extents_[walk].last - extents_[walk].first + 1);
      }
    }
    problem_.walk_partial = walk_partial_.data();
    const int64_t floats = records * problem_.num_kv_heads * problem_.group_size * problem_.partial_stride;
    problem_.partials = static_cast<float*>(partials_.get(floats * static_cast<int64_t>(sizeof(float))));
  }

  // Workers take the next task until none is left.
  void run_tasks(const std::vector<TileTask>& tasks) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      thread_local Scratch scratch;
      void* memory = scratch.get(scratch_bytes_);
      for (size_t i = next.fetch_add(1); i < tasks.size(); i = next.fetch_add(1))
        kernel_.run(problem_, tasks[i], memory);
    };
    const int64_t workers = std::min<int64_t>(num_threads_, static_cast<int64_t>(tasks.size()));
    if (workers <= 1) {
      work();
    } else {
      parallel_for_(workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) work();
      });
    }
  }

  PlanView plan_;
  const ParallelFor& parallel_for_;
  int32_t num_threads_;
  TileProblem problem_{};
  TileKernel kernel_{};
  int64_t scratch_bytes_ = 0;
  std::vector<Extent> extents_;
  std::vector<TileTask> tasks_;
  std::vector<TileTask> folds_;
  std::vector<int64_t> walk_partial_;
  Scratch partials_;
};

}  // namespace

void tree_attention(const TreeAttentionParams& params, const ParallelFor& parallel_for) {
  Driver(params, parallel_for).run();
}

}  // namespace apar::cpu
