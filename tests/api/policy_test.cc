// What a policy's fields come to where the library chooses.

#include "csrc/api/policy.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"

namespace semkv {
namespace {

int32_t Recent(int32_t kind, int32_t budget) {
  semkv_policy policy = DefaultPolicy(kind);
  policy.budget = budget;
  EXPECT_TRUE(ValidatePolicy(policy).ok()) << ValidatePolicy(policy);
  return RecentTokens(policy);
}

TEST(PolicyTest, SmallBudgetsKeepRoomForLists) {
  EXPECT_EQ(Recent(SEMKV_POLICY_HYBRID, 2048), 64);
  EXPECT_EQ(Recent(SEMKV_POLICY_HYBRID, 512), 64);
  EXPECT_EQ(Recent(SEMKV_POLICY_HYBRID, 256), 32);
  EXPECT_EQ(Recent(SEMKV_POLICY_HYBRID, 100), 16);
  EXPECT_EQ(Recent(SEMKV_POLICY_HYBRID, 32), 16);
  EXPECT_EQ(Recent(SEMKV_POLICY_WINDOW, 1000), 984);
  EXPECT_EQ(Recent(SEMKV_POLICY_CLUSTERKV, 1000), 1);
}

TEST(PolicyTest, SinksAndRecentNeverExceedTheBudget) {
  semkv_policy policy = DefaultPolicy(SEMKV_POLICY_HYBRID);
  policy.sinks = 200;
  policy.budget = 220;
  EXPECT_TRUE(ValidatePolicy(policy).ok());
  EXPECT_EQ(RecentTokens(policy), 20);
}

TEST(PolicyTest, RefusesBudgetsThatHoldNoRecentTokens) {
  const auto message = [](int32_t budget, int32_t recent) {
    semkv_policy policy = DefaultPolicy(SEMKV_POLICY_HYBRID);
    policy.budget = budget;
    policy.recent = recent;
    return std::string(ValidatePolicy(policy).message());
  };
  EXPECT_EQ(message(32, -1), "");
  EXPECT_TRUE(absl::StrContains(message(31, -1), "31, must hold sinks + recent = 16 + 16"));
  EXPECT_TRUE(absl::StrContains(message(79, 64), "79, must hold sinks + recent = 16 + 64"));
  EXPECT_TRUE(absl::StrContains(message(79, 0), "recent is 0"));
  EXPECT_TRUE(absl::StrContains(message(79, -2), "recent is -2"));
}

}  // namespace
}  // namespace semkv
