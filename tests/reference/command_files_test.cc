#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "integration/reference/command/files.h"
#include "integration/reference/command/progress.h"

namespace semkv::command {
namespace {

namespace fs = std::filesystem;

class CommandFilesTest : public testing::Test {
 protected:
  CommandFilesTest()
      : folder_(fs::path(testing::TempDir()) / ("semkv." + std::to_string(getpid()))) {
    fs::create_directories(folder_);
  }
  ~CommandFilesTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  int64_t NumFiles() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }

  const fs::path folder_;
};

TEST_F(CommandFilesTest, WritesWhatItReads) {
  const std::string bytes("a\0b\n", 4);
  ASSERT_TRUE(WriteFile(Path("a"), "old, and longer").ok());
  ASSERT_TRUE(WriteFile(Path("a"), bytes).ok());
  EXPECT_EQ(*ReadFile(Path("a")), bytes);
  ASSERT_TRUE(WriteFile(Path("empty"), "").ok());
  EXPECT_EQ(*ReadFile(Path("empty")), "");
  EXPECT_EQ(NumFiles(), 2);
}

TEST_F(CommandFilesTest, FollowsLinks) {
  ASSERT_TRUE(WriteFile(Path("target"), "old").ok());
  fs::create_symlink(Path("target"), Path("link"));
  ASSERT_TRUE(WriteFile(Path("link"), "new").ok());
  EXPECT_TRUE(fs::is_symlink(Path("link")));
  EXPECT_EQ(*ReadFile(Path("target")), "new");
}

TEST_F(CommandFilesTest, CheckLeavesEverythingAsItWas) {
  ASSERT_TRUE(WriteFile(Path("a"), "old").ok());
  EXPECT_TRUE(CheckWritable(Path("a")).ok());
  EXPECT_TRUE(CheckWritable(Path("new")).ok());
  EXPECT_EQ(NumFiles(), 1);
  EXPECT_EQ(*ReadFile(Path("a")), "old");
}

TEST_F(CommandFilesTest, DevicesAreNotReplaced) {
  EXPECT_TRUE(CheckWritable("/dev/null").ok());
  EXPECT_TRUE(WriteFile("/dev/null", "gone").ok());
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(CommandFilesTest, ErrorsNameThePathAndTheReason) {
  const std::string nowhere = Path("no/such/folder");
  EXPECT_TRUE(absl::StrContains(CheckWritable(nowhere).message(), nowhere + ": No such file"));
  EXPECT_TRUE(absl::StrContains(WriteFile(nowhere, "x").message(), nowhere + ": No such file"));
  EXPECT_TRUE(absl::StrContains(CheckWritable(folder_.string()).message(), "is a directory"));
  EXPECT_EQ(ReadFile(Path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(ReadFile(folder_.string()).status().message(), "is a directory"));
}

TEST(CommandProgressTest, TheBarFillsInProportion) {
  const std::string half = ProgressLine("prefill", 5, 10);
  EXPECT_TRUE(absl::StrContains(half, "[################----------------] 5 / 10")) << half;
  EXPECT_TRUE(absl::StrContains(ProgressLine("x", 0, 0), "[--------------------------------]"));
  EXPECT_LE(ProgressLine(std::string(200, 'x'), 100000, 100000).size(), 100u);
}

}  // namespace
}  // namespace semkv::command
