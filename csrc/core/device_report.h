// What a kernel found wrong in numbers that only the device sees. Kernels go on without what is wrong and write a
// report to memory of the host, who raises it as an error at one of the next calls: nobody has to wait for the device.
#pragma once

#include <cstdint>
#include <string>

namespace apar {

enum class DeviceFault : int32_t {
  kNone,
  kAppendKvSlot,
  kPageId,
  kSampledToken,
  kSampledSize,
  kForestHeader,
  kPlanIndptr,
  kPlanRange,
  kPlanRows,
};

// One access of 16 bytes, so that a report is never half of one and half of another.
struct alignas(16) DeviceReport {
  DeviceFault fault;
  int32_t index;
  int32_t value;
  int32_t largest;  // that would have been right
};

inline std::string report_text(const DeviceReport& report) {
  const std::string value = std::to_string(report.value), largest = std::to_string(report.largest);
  switch (report.fault) {
    case DeviceFault::kNone:
      return "";
    case DeviceFault::kAppendKvSlot:
      return "append_kv: in an earlier call on a CUDA device slots[" + std::to_string(report.index) + "] is " + value +
             ", expected -1 or 0 to num_pages * page_size - 1 = " + largest + "; the row was skipped";
    case DeviceFault::kPageId:
      return "tree_attention: in an earlier call on a CUDA device page_table has page id " + value +
             " in a range of stream " + std::to_string(report.index) + ", expected 0 to num_pages - 1 = " + largest +
             "; page 0 was read instead";
    case DeviceFault::kSampledToken:
      return "advance: in an earlier call on a CUDA device sampled[" + std::to_string(report.index) + "] is " + value +
             ", expected a token, or -1 to end the branch; the branch was ended";
    case DeviceFault::kSampledSize:
      return "advance: in an earlier call on a CUDA device sampled has " + value +
             " tokens, expected at least num_rows = " + largest + "; the forest was left as it was";
    case DeviceFault::kForestHeader:
      return "advance: in an earlier call on a CUDA device forest had " + value + " as number " +
             std::to_string(report.index) + " of its header, expected " + largest + "; it was left as it was";
    case DeviceFault::kPlanIndptr:
      return "make_plan: in an earlier call on a CUDA device row_indptr[" + std::to_string(report.index) + "] is " +
             value + ", expected numbers that ascend from 0 to at most N = " + largest + "; no row read anything";
    case DeviceFault::kPlanRange:
      return "make_plan: in an earlier call on a CUDA device range " + std::to_string(report.index) + " of stream " +
             value + " is no part of a stream, expected one of 0 to S - 1 = " + largest +
             " and 0 <= begin <= end <= max_pages * page_size; it was left out";
    case DeviceFault::kPlanRows:
      return "write_step_plans: in an earlier call on a CUDA device the step had " + value +
             " rows, expected at most rows = " + largest + "; the others were left out";
  }
  return "";
}

}  // namespace apar
