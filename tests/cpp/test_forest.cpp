#include <algorithm>
#include <random>
#include <stdexcept>

#include "check.h"
#include "core/plan.h"
#include "cpu/advance.h"
#include "cpu/forest.h"

namespace {

using apar::Forest;
using apar::ForestConfig;

constexpr int32_t kFork = 7, kChild = 8, kStop = 2;

// A forest in a buffer of exactly its size, so that a sanitizer sees a step outside.
class Box {
 public:
  explicit Box(const ForestConfig& config) : data_(apar::forest_size(config)) {
    reinterpret_cast<apar::ForestHeader*>(data_.data())->config = config;
    apar::cpu::forest_reset(data_.data(), static_cast<int64_t>(data_.size()));
  }

  Forest view() { return apar::cpu::open_forest("test", data_.data(), static_cast<int64_t>(data_.size())); }
  std::vector<int32_t>& data() { return data_; }

 private:
  std::vector<int32_t> data_;
};

ForestConfig small_config() {
  return {.num_slots = 8,
          .num_pages = 40,
          .page_size = 8,
          .max_pages = 20,
          .max_ranges = 6,
          .max_rows = 8,
          .num_kv_heads = 1,
          .group_size = 1,
          .fork_token = kFork,
          .child_token = kChild,
          .max_depth = 3,
          .max_children = 2,
          .max_live_branches = 8,
          .keep_finished = 0,
          .num_stop_tokens = 1,
          .stop_tokens = {kStop}};
}

// Every page and every slot has one owner; what branches read is held; the order is whole.
void check_ownership(const Forest& forest) {
  const ForestConfig& config = forest.config;
  std::vector<int> pages(config.num_pages), slots(config.num_slots);
  for (int32_t i = 0; i < forest.header->num_free_pages; ++i) ++pages[forest.free_pages[i]];
  for (int32_t i = 0; i < forest.header->num_free_slots; ++i) ++slots[forest.free_slots[i]];
  for (int32_t slot = 0; slot < config.num_slots; ++slot) {
    if (forest.state[slot] == apar::kFree) continue;
    ++slots[slot];
    EXPECT(forest.num_pages[slot] == apar::pages_for(forest, forest.length[slot]));
    for (int32_t i = 0; i < config.max_pages; ++i) {
      const int32_t page = forest.page_table[forest.page_row(slot) + i];
      EXPECT((page >= 0) == (i < forest.num_pages[slot]));
      if (page >= 0) ++pages[page];
    }
    if (forest.state[slot] != apar::kLive) continue;
    for (int32_t i = 0; i < forest.num_context[slot]; ++i) {
      const int64_t at = forest.context_row(slot) + i;
      const int32_t stream = forest.context_stream[at];
      EXPECT(forest.state[stream] != apar::kFree);
      EXPECT(forest.context_end[at] <= forest.length[stream]);
    }
  }
  for (const int count : pages) EXPECT(count == 1);
  for (const int count : slots) EXPECT(count == 1);
  EXPECT(forest.header->num_order + forest.header->num_shared + forest.header->num_free_slots == config.num_slots);
  // The plan names the step's rows and pages alone.
  const apar::PlanView plan(forest.plan_schedule);
  EXPECT(plan.header->num_rows == forest.header->num_rows);
  EXPECT(plan.header->num_ranges == forest.header->num_ranges);
}

void run_random_script(unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&random](int64_t bound) { return static_cast<int32_t>(random() % bound); };
  ForestConfig config = small_config();
  config.max_depth = 1 + below(4);
  config.max_children = 1 + below(3);
  config.keep_finished = below(2);
  const int32_t levels = config.max_depth - 1, longest = 4 + below(60), own = (longest - 1 + 7) / 8;
  const int32_t kept = config.keep_finished ? levels * config.max_children : levels;
  config.num_slots = 1 + kept + below(6);
  config.num_pages = own + (config.keep_finished ? kept * own : levels) + below(10);
  config.max_pages = own;
  config.max_ranges = config.max_depth + (config.keep_finished ? kept : 0);
  config.max_rows = 1 + below(6);
  config.max_live_branches = 1 + below(4);
  Box box(config);
  const Forest forest = box.view();

  int32_t next_request = 0, shared = -1;
  std::vector<int32_t> sampled(config.max_rows);
  const auto step = [&] {
    for (int32_t row = 0; row < config.max_rows; ++row) {
      const int32_t draw = below(20);
      sampled[row] = draw == 0 ? -1 : draw == 1 ? kStop : draw < 8 ? kFork : 100 + draw;
    }
    apar::cpu::advance(forest, sampled.data(), forest.config.max_rows);
  };
  for (int action = 0; action < 150; ++action) {
    const int32_t prompt = 1 + below(longest - 1), limit = prompt + 1 + below(longest - prompt);
    switch (below(8)) {
      case 0:
      case 1: {
        const bool reads_shared = shared >= 0 && forest.length[shared] < prompt;
        try {
          next_request +=
              apar::cpu::forest_admit(forest, next_request, prompt, limit, 5, reads_shared ? shared : -1) >= 0;
        } catch (const std::invalid_argument&) {
          EXPECT(forest.header->num_live == 0);  // shared streams are in the way
        }
        apar::cpu::schedule(forest);
        break;
      }
      case 2:
        if (next_request > 0 && below(3) == 0) apar::cpu::forest_cancel(forest, below(next_request));
        break;
      case 3:
        if (shared < 0) {
          shared = apar::cpu::forest_open_shared(forest, 1 + below(8 * std::min(own, config.num_pages)));
        } else {
          apar::cpu::forest_close_shared(forest, shared);
          shared = -1;
        }
        break;
      case 4:
        for (int32_t i = 0; config.keep_finished && i < forest.header->num_order; ++i) {
          const int32_t child = forest.order[i], parent = forest.parent[child];
          if (forest.state[child] != apar::kFinished || parent < 0 || forest.state[parent] != apar::kLive) continue;
          try {
            apar::cpu::forest_join(forest, parent, &child, 1);
          } catch (const std::invalid_argument&) {  // joined already
          }
        }
        break;
      default:
        step();
    }
    check_ownership(forest);
  }
  if (shared >= 0) apar::cpu::forest_close_shared(forest, shared);
  apar::cpu::schedule(forest);
  for (int steps = 0; forest.header->num_live > 0; ++steps) {
    EXPECT(forest.header->num_rows > 0);  // else a deadlock
    EXPECT(steps < 100000);
    step();
    check_ownership(forest);
  }
  EXPECT(forest.header->num_free_pages == config.num_pages);
  EXPECT(forest.header->num_free_slots == config.num_slots);
}

template <class Call>
bool throws(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(forest_random_scripts) {
  for (unsigned seed = 0; seed < 400; ++seed) run_random_script(seed);
}

TEST(forest_rejects_before_it_writes) {
  Box box(small_config());
  const Forest forest = box.view();
  EXPECT(apar::cpu::forest_admit(forest, 0, 9, 40, 5, -1) == 0);
  apar::cpu::schedule(forest);
  const std::vector<int32_t> before = box.data();
  EXPECT(throws([&] { apar::cpu::forest_admit(forest, 0, 9, 40, 5, -1); }));
  EXPECT(throws([&] { apar::cpu::forest_admit(forest, 1, 9, 9, 5, -1); }));
  EXPECT(throws([&] { apar::cpu::forest_admit(forest, 1, 9, int64_t{1} << 40, 5, -1); }));
  EXPECT(throws([&] { apar::cpu::forest_open_shared(forest, -1); }));
  EXPECT(throws([&] { apar::cpu::forest_close_shared(forest, 0); }));
  EXPECT(throws([&] { apar::cpu::forest_join(forest, 0, nullptr, 0); }));
  const int32_t bad_token = -2;
  EXPECT(apar::cpu::find_bad_token(forest, &bad_token) == 0);
  EXPECT(throws([&] { apar::cpu::open_forest("test", box.data().data(), 100); }));
  EXPECT(box.data() == before);
}

TEST(forest_grants_run_out_for_everyone_behind) {
  // Once a page is refused, nobody behind gets one in the same pass: the rule that lets a GPU decide by two scans.
  apar::Bank bank{.free = 3};
  bank.pass(2, 5);
  EXPECT(bank.may_take(1));
  EXPECT(!bank.may_take(2));  // the first still needs two of the three
  bank.take(1);
  bank.pass(1, 1);
  EXPECT(!bank.may_take(1));
  bank.pass(0, 100);
  EXPECT(!bank.may_take(1));
}
