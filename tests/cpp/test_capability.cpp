#include "check.h"
#include "core/capability.h"

using apar::runs_on;
using apar::supported_text;

TEST(capabilities_that_the_default_build_serves) {
  const std::string built = "80 90a 90+PTX";
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 120, 121}) EXPECT(runs_on(built, capability));
  for (const int capability : {0, 37, 61, 70, 72, 75, 79}) EXPECT(!runs_on(built, capability));
  EXPECT(supported_text(built) == "8.0 to 8.9, 9.0 and newer");
}

TEST(capabilities_of_other_builds) {
  EXPECT(!runs_on("90a 90+PTX", 80) && runs_on("90a 90+PTX", 90) && runs_on("90a 90+PTX", 120));
  EXPECT(supported_text("90a 90+PTX") == "9.0 and newer");
  // Code for one capability alone, and without intermediate code.
  EXPECT(runs_on("90a", 90) && !runs_on("90a", 91) && !runs_on("90a", 100));
  EXPECT(supported_text("86 90a") == "8.6 to 8.9, 9.0");
  EXPECT(!runs_on("86", 80) && runs_on("86", 86) && runs_on("86", 89) && !runs_on("86", 90));
  // Two digits of the major number.
  EXPECT(runs_on("120", 121) && !runs_on("120", 103) && !runs_on("100a", 103) && runs_on("100f", 103));
  EXPECT(supported_text("100f 120a 120+PTX") == "10.0 to 10.9, 12.0 and newer");
  EXPECT(supported_text("89") == "8.9");
  EXPECT(!runs_on("", 90));
}
