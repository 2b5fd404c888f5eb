// How CPU kernels run in parallel without knowing whose threads they use.
#pragma once

#include <cstdint>
#include <functional>

namespace apar::cpu {

// Runs body(begin, end) over disjoint subranges of [0, count), none smaller than grain but the last one.
// Operators pass torch's thread pool; C++ tests pass a serial loop or std::thread.
using ParallelFor =
    std::function<void(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body)>;

}  // namespace apar::cpu
