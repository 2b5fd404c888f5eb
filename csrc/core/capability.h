// On which devices code that was compiled for some architectures runs. Compute capabilities are 10 * major + minor.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace apar {

struct BuiltArch {
  int capability;
  bool exact;     // 90a: this capability alone; otherwise machine code serves later ones of the same major, too
  bool portable;  // 90+PTX: intermediate code, which every later device compiles for itself
};

// built: as build_info has it, "80 90a 90+PTX".
inline std::vector<BuiltArch> parse_archs(std::string_view built) {
  std::vector<BuiltArch> archs;
  for (size_t i = 0; i < built.size();) {
    if (built[i] < '0' || built[i] > '9') {
      ++i;
      continue;
    }
    BuiltArch arch{0, false, false};
    for (; i < built.size() && built[i] >= '0' && built[i] <= '9'; ++i) {
      arch.capability = 10 * arch.capability + (built[i] - '0');
    }
    for (; i < built.size() && built[i] != ' '; ++i) {
      arch.exact = arch.exact || built[i] == 'a';
      arch.portable = arch.portable || built[i] == '+';
    }
    archs.push_back(arch);
  }
  return archs;
}

inline bool runs_on(std::string_view built, int capability) {
  for (const BuiltArch& arch : parse_archs(built)) {
    if (arch.portable ? capability >= arch.capability
        : arch.exact  ? capability == arch.capability
                      : capability >= arch.capability && capability / 10 == arch.capability / 10) {
      return true;
    }
  }
  return false;
}

inline std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// "8.0 to 8.9, 9.0 and newer"
inline std::string supported_text(std::string_view built) {
  const std::vector<BuiltArch> archs = parse_archs(built);
  std::string text;
  for (const BuiltArch& arch : archs) {
    bool covered = false;
    for (const BuiltArch& other : archs) {
      covered = covered || (!arch.portable && other.portable && arch.capability >= other.capability);
    }
    if (covered) continue;
    text += (text.empty() ? "" : ", ") + capability_text(arch.capability);
    if (arch.portable) {
      text += " and newer";
    } else if (!arch.exact && arch.capability % 10 != 9) {
      text += " to " + capability_text(arch.capability / 10 * 10 + 9);
    }
  }
  return text;
}

}  // namespace apar
