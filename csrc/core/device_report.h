// What a kernel found wrong in numbers that only the device sees. Kernels go on without what is wrong and write a
// report to memory of the host, who raises it as an error at one of the next calls: nobody has to wait for the device.
#pragma once

#include <cstdint>
#include <string>

namespace apar {

enum class DeviceFault : int32_t { kNone, kAppendKvSlot, kPageId };

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
  }
  return "";
}

}  // namespace apar
