// The forest and advance under random scripts. Every script runs twice: on a forest as it is, one buffer, and on one
// whose tensors are buffers of their own, so that the sanitizers see a step from one tensor into the next.
#include "cpu/forest.h"

#include <algorithm>
#include <random>
#include <stdexcept>

#include "check.h"
#include "cpu/advance.h"

namespace {

using apar::Forest;
using apar::ForestConfig;
using apar::ForestHeader;
using apar::kEndedColumns;
using apar::kOpenedColumns;

struct SplitForest {
  ForestHeader header;
#define APAR_OWN(name, rows, columns) std::vector<int32_t> name;
  APAR_FOREST_TENSORS(APAR_OWN)
#undef APAR_OWN
  Forest view;
};

// The size of a tensor without the padding behind it.
int64_t tensor_size(int64_t rows, int64_t columns) { return rows * (columns == 0 ? 1 : columns); }

SplitForest split(const Forest& forest) {
  const apar::ForestSizes sizes(forest.config);
  SplitForest copy;
  copy.header = *forest.header;
#define APAR_COPY(name, rows, columns) \
  copy.name.assign(forest.name, forest.name + tensor_size(int64_t{rows}, int64_t{columns}));
  APAR_FOREST_TENSORS(APAR_COPY)
#undef APAR_COPY
  return copy;
}

void point(SplitForest& copy, const Forest& forest) {
  copy.view = forest;
  copy.view.header = &copy.header;
#define APAR_POINT_TO_OWN(name, rows, columns) copy.view.name = copy.name.data();
  APAR_FOREST_TENSORS(APAR_POINT_TO_OWN)
#undef APAR_POINT_TO_OWN
}

void expect_same(const Forest& forest, const SplitForest& copy) {
  const apar::ForestSizes sizes(forest.config);
  EXPECT(std::memcmp(forest.header, &copy.header, sizeof(ForestHeader)) == 0);
#define APAR_COMPARE(name, rows, columns) \
  EXPECT(std::equal(forest.name, forest.name + tensor_size(int64_t{rows}, int64_t{columns}), copy.name.begin()));
  APAR_FOREST_TENSORS(APAR_COMPARE)
#undef APAR_COMPARE
}

ForestConfig random_config(std::mt19937& random) {
  const auto between = [&random](int low, int high) {
    return low + static_cast<int32_t>(random() % static_cast<unsigned>(high - low + 1));
  };
  ForestConfig config{};
  config.max_depth = between(1, 4);
  config.max_children = between(1, 3);
  config.keep_finished = between(0, 3) == 0;
  const int32_t levels = config.max_depth - 1;
  config.num_slots = 1 + levels * (config.keep_finished ? config.max_children : 1) + between(0, 12);
  config.page_size = 8 << between(0, 1);
  config.max_pages = between(2, 5);
  config.num_pages = config.max_pages + levels + between(0, 20);
  config.max_ranges = config.max_depth + between(0, 4);
  config.max_rows = between(1, 9);
  config.num_kv_heads = between(1, 3);
  config.group_size = between(1, 40);
  config.max_live_branches = between(1, 6);
  config.fork_token = 7;
  config.child_token = 8;
  config.num_stop_tokens = 1;
  config.stop_tokens[0] = 9;
  return config;
}

// No page and no slot is lost or owned twice; rows write to distinct entries of their own streams.
void expect_sound(const Forest& forest) {
  const ForestHeader& header = *forest.header;
  std::vector<int> owners(forest.config.num_pages, 0);
  for (int32_t i = 0; i < header.num_free_pages; ++i) ++owners[forest.free_pages[i]];
  int32_t used_slots = 0, live = 0;
  for (int32_t slot = 0; slot < forest.config.num_slots; ++slot) {
    if (forest.state[slot] == apar::kFree) continue;
    ++used_slots;
    live += forest.state[slot] == apar::kLive;
    EXPECT(forest.num_pages[slot] == apar::pages_for(forest, forest.length[slot]));
    for (int32_t i = 0; i < forest.num_pages[slot]; ++i) ++owners[forest.page_table[forest.page_row(slot) + i]];
  }
  for (const int owner : owners) EXPECT(owner == 1);
  EXPECT(used_slots + header.num_free_slots == forest.config.num_slots);
  EXPECT(live == header.num_live);
  EXPECT(header.num_order + header.num_shared == used_slots);

  EXPECT(live == 0 || header.num_rows > 0);  // somebody can always go on
  EXPECT(header.num_rows <= forest.config.max_rows);
  std::vector<int32_t> kv_slots(forest.row_kv_slot, forest.row_kv_slot + header.num_rows);
  std::sort(kv_slots.begin(), kv_slots.end());
  EXPECT(std::adjacent_find(kv_slots.begin(), kv_slots.end()) == kv_slots.end());
  for (int32_t row = 0; row < header.num_rows; ++row) {
    for (int32_t i = forest.row_indptr[row]; i < forest.row_indptr[row + 1]; ++i) {
      EXPECT(forest.range_end[i] <= forest.length[forest.range_stream[i]]);
      EXPECT(forest.state[forest.range_stream[i]] != apar::kFree);
    }
  }
}

// What the host may do between steps, the same on both forests. Arguments that cannot be are refused by both alike.
void host_step(std::mt19937& random, const Forest& forest, SplitForest& copy, int32_t& next_request) {
  const auto below = [&random](int64_t bound) { return static_cast<int64_t>(random() % static_cast<uint64_t>(bound)); };
  const auto both = [&](const auto& call) {
    int64_t results[2];
    const Forest* forests[2] = {&forest, &copy.view};
    for (int i = 0; i < 2; ++i) {
      try {
        results[i] = call(*forests[i]);
      } catch (const std::invalid_argument&) {
        results[i] = -2;
      }
    }
    EXPECT(results[0] == results[1]);
  };
  const ForestConfig& config = forest.config;
  const int64_t most = int64_t{config.max_pages} * config.page_size;
  const int64_t choice = below(10);
  if (choice < 4) {
    const int64_t prompt = 1 + below(most), limit = prompt + 1 + below(most);
    const int64_t shared = forest.header->num_shared > 0 && below(2) ? forest.shared[0] : -1;
    const int32_t request = below(5) ? next_request++ : static_cast<int32_t>(below(next_request + 1));
    both([&](const Forest& f) { return apar::cpu::forest_admit(f, request, prompt, limit, 1, shared); });
  } else if (choice == 4) {
    const int64_t request = below(next_request + 1);
    both([&](const Forest& f) { return apar::cpu::forest_cancel(f, request); });
  } else if (choice == 5 && forest.header->num_shared < 2) {
    const int64_t length = 1 + below(most);
    both([&](const Forest& f) { return apar::cpu::forest_open_shared(f, length); });
  } else if (choice == 6) {
    const int64_t slot = below(config.num_slots + 2) - 1;
    both([&](const Forest& f) { return apar::cpu::forest_close_shared(f, slot), 0; });
  } else if (choice == 7) {
    const int64_t parent = below(config.num_slots);
    std::vector<int32_t> children;
    for (int32_t slot = 0; slot < config.num_slots; ++slot) {
      if (forest.state[slot] == apar::kFinished && forest.parent[slot] == parent) children.push_back(slot);
    }
    both([&](const Forest& f) {
      apar::cpu::forest_join(f, parent, children.data(), static_cast<int64_t>(children.size()));
      return 0;
    });
  }
  apar::cpu::schedule(forest);
  apar::cpu::schedule(copy.view);
}

void run_script(unsigned seed) {
  std::mt19937 random(seed);
  const ForestConfig config = random_config(random);
  std::vector<int32_t> data(apar::forest_size(config), -1);
  reinterpret_cast<ForestHeader*>(data.data())->config = config;
  apar::cpu::forest_reset(data.data(), static_cast<int64_t>(data.size()));
  const Forest forest = apar::cpu::open_forest("test", data.data(), static_cast<int64_t>(data.size()));
  SplitForest copy = split(forest);
  point(copy, forest);

  int32_t next_request = 0;
  const int steps = 120;
  for (int step = 0; step < steps || forest.header->num_live > 0; ++step) {
    const bool closing = step >= steps;
    EXPECT(step < 20 * steps);
    if (!closing && random() % 4 == 0) {
      host_step(random, forest, copy, next_request);
      expect_sound(forest);
      expect_same(forest, copy);
    }
    std::vector<int32_t> sampled(forest.header->num_rows);
    for (int32_t& token : sampled) {
      const unsigned choice = random() % 32;
      token = choice < 9 ? config.fork_token : choice < 10 || (closing && choice < 16) ? 9 : choice == 31 ? -1 : 1;
    }
    EXPECT(apar::cpu::find_bad_token(forest, sampled.data()) == -1);
    apar::cpu::advance(forest, sampled.data());
    apar::cpu::advance(copy.view, sampled.data());
    expect_sound(forest);
    expect_same(forest, copy);

    std::vector<int32_t> begins(forest.header->num_ranges);
    apar::cpu::window_begins({.rows = forest.header->num_rows,
                              .row_indptr = copy.row_indptr.data(),
                              .row_position = copy.row_position.data(),
                              .range_stream = copy.range_stream.data(),
                              .range_begin = copy.range_begin.data(),
                              .range_end = copy.range_end.data(),
                              .first_position = copy.first_position.data(),
                              .window = 1 + static_cast<int32_t>(random() % 20)},
                             begins.data());
    for (size_t i = 0; i < begins.size(); ++i) {
      EXPECT(begins[i] >= forest.range_begin[i] && begins[i] <= forest.range_end[i]);
    }
  }

  while (forest.header->num_shared > 0) apar::cpu::forest_close_shared(forest, forest.shared[0]);
  EXPECT(forest.header->num_free_pages == config.num_pages);
  EXPECT(forest.header->num_free_slots == config.num_slots);
}

}  // namespace

TEST(forest_random_scripts) {
  for (unsigned seed = 0; seed < 300; ++seed) run_script(seed);
}

TEST(forest_refuses_what_is_none) {
  std::vector<int32_t> data(70, 0);
  bool refused = false;
  try {
    apar::cpu::open_forest("test", data.data(), 70);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  EXPECT(refused);
}
