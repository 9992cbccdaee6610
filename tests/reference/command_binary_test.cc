// The built program as its users meet it: exit codes, one-line errors, files never half written,
// and whole runs on the shipped model.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "integration/reference/command/files.h"

namespace semkv::command {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

class CommandBinaryTest : public testing::Test {
 protected:
  CommandBinaryTest()
      : folder_(fs::path(testing::TempDir()) / absl::StrCat("semkv_binary.", getpid())),
        model_(absl::StrCat(SEMKV_SOURCE_DIR, "/models/semkv-tiny")) {
    fs::create_directories(folder_);
    Write("short.txt", "The mill of Fenby is red. The access code of the Marlow harbor is 7413.");
  }
  ~CommandBinaryTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  void Write(const std::string& name, const std::string& bytes) const {
    ASSERT_TRUE(WriteFile(Path(name), bytes).ok());
  }
  int64_t NumFiles() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }

  // `arguments` as in a shell.
  Outcome Semkv(const std::string& arguments) const {
    Outcome outcome;
    const std::string command =
        absl::StrCat(SEMKV_COMMAND, " ", arguments, " >", Path("out"), " 2>", Path("err"));
    const int status = std::system(command.c_str());
    if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
    outcome.out = *ReadFile(Path("out"));
    outcome.err = *ReadFile(Path("err"));
    fs::remove(Path("out"));
    fs::remove(Path("err"));
    return outcome;
  }

  std::string Run(const std::string& more) const {
    return absl::StrCat("run --model ", model_, " --prompt-file ", Path("short.txt"),
                        " --question 'What is red?' --threads 1 ", more);
  }

  // The one line that a refused command prints.
  std::string Refusal(const std::string& arguments) const {
    const Outcome outcome = Semkv(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_TRUE(absl::StartsWith(outcome.err, "semkv: ")) << outcome.err;
    EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1) << outcome.err;
    return outcome.err;
  }

  // A copy of the shipped model that tests damage.
  std::string CopyModel() const {
    fs::copy(model_, Path("model"), fs::copy_options::recursive);
    return Path("model");
  }

  const fs::path folder_;
  const std::string model_;
};

TEST_F(CommandBinaryTest, RefusesWithOneLine) {
  EXPECT_TRUE(absl::StrContains(Refusal(""), "run or evaluate"));
  EXPECT_TRUE(absl::StrContains(Refusal(Run("--policy best")), "unknown policy 'best'"));
  EXPECT_TRUE(absl::StrContains(Refusal(Run("--budget 31")), "31 tokens is below 16 sinks + 16"));
  EXPECT_TRUE(absl::StrContains(Refusal(Run("--max-new-tokens 40000")), "32768 positions"));
  EXPECT_TRUE(absl::StrContains(Refusal("run --model m --prompt-file " + Path("short.txt")),
                                "no question"));
  EXPECT_TRUE(absl::StrContains(
      Refusal(absl::StrCat("run --model ", model_, " --question a --prompt-file ", Path("none"))),
      Path("none")));
  Write("blank.txt", " \n");
  EXPECT_TRUE(
      absl::StrContains(Refusal(absl::StrCat("run --model ", model_, " --question a --prompt-file ",
                                             Path("blank.txt"))),
                        "is empty"));
  EXPECT_TRUE(absl::StrContains(Refusal(Run("--question ' '")), "question 2 is empty"));
  Write("questions.json", "[]");
  EXPECT_TRUE(absl::StrContains(
      Refusal(absl::StrCat("run --model ", model_, " --prompt-file ", Path("short.txt"),
                           " --questions-file ", Path("questions.json"))),
      "holds no question"));
}

TEST_F(CommandBinaryTest, RefusesModelsThatAreMissingCutOffOrUnsupported) {
  const auto refusal = [&](const std::string& model) {
    return Refusal(
        absl::StrCat("run --model ", model, " --question a --prompt-file ", Path("short.txt")));
  };
  EXPECT_TRUE(absl::StrContains(refusal(Path("none")), Path("none")));
  const std::string model = CopyModel();
  const std::string config = *ReadFile(model + "/config.json");
  const std::string weights = model + "/model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) / 2);
  EXPECT_TRUE(absl::StrContains(refusal(model), "model.safetensors"));
  fs::remove(weights);
  EXPECT_TRUE(absl::StrContains(refusal(model), "model.safetensors"));
  nlohmann::json other = nlohmann::json::parse(config);
  other["hidden_act"] = "gelu";
  Write("model/config.json", other.dump());
  EXPECT_TRUE(absl::StrContains(refusal(model), "hidden_act"));
  Write("model/config.json", config.substr(0, config.size() / 2));
  EXPECT_TRUE(absl::StrContains(refusal(model), "config.json"));
  fs::remove(model + "/tokenizer.json");
  Write("model/config.json", config);
  EXPECT_TRUE(absl::StrContains(refusal(model), "tokenizer.json"));
}

TEST_F(CommandBinaryTest, ChecksOutputsBeforeTheWorkAndLeavesThemAsTheyWere) {
  EXPECT_TRUE(absl::StrContains(Refusal(Run("--json " + Path("no/a.json"))), "no/a.json"));
  EXPECT_TRUE(absl::StrContains(Refusal(Run("--html " + folder_.string())), "is a directory"));
  Write("old.json", "old");
  Refusal(Run(absl::StrCat("--max-new-tokens 40000 --json ", Path("old.json"), " --html ",
                           Path("new.html"))));
  EXPECT_EQ(*ReadFile(Path("old.json")), "old");
  EXPECT_EQ(NumFiles(), 2);
}

TEST_F(CommandBinaryTest, PrintsHelpAndVersion) {
  const Outcome help = Semkv("run --help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_TRUE(absl::StrContains(help.out, "token by token"));
  const Outcome version = Semkv("--version");
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_TRUE(absl::StartsWith(version.out, "semkv "));
}

TEST_F(CommandBinaryTest, AWholeRunIsQuietOnStderrAndWritesEverything) {
  std::string text;
  for (int i = 0; i < 60; ++i) {
    absl::StrAppend(&text, " The lamp of room ", i, " is lit at night.");
  }
  Write("long.txt", "The access code of the Marlow harbor is 7413." + text);
  const Outcome outcome = Semkv(absl::StrCat(
      "run --model ", model_, " --prompt-file ", Path("long.txt"),
      " --question 'What is the access code of the Marlow harbor?' --policy dense --policy hybrid "
      "--policy window --budget 128 --force-sparse --threads 1 --json ",
      Path("a.json"), " --html ", Path("a.html")));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(absl::StrContains(outcome.out, "hybrid"));
  const nlohmann::json json = nlohmann::json::parse(*ReadFile(Path("a.json")));
  ASSERT_EQ(json["policies"].size(), 3u);
  EXPECT_EQ(json["policies"][0]["mean_kl_to_dense"], 0.0);
  for (int i : {1, 2}) {
    const nlohmann::json& policy = json["policies"][i];
    EXPECT_EQ(policy["fallbacks"].size(), 0u) << policy["fallbacks"];
    EXPECT_LE(policy["attended_tokens_mean"].get<double>(), 128.0);
    EXPECT_LT(policy["kv_bytes_read_per_token"].get<double>(),
              policy["dense_kv_bytes_per_token"].get<double>());
    EXPECT_GT(policy["captured_mass_mean"].get<double>(), 0.0);
  }
  const std::string page = *ReadFile(Path("a.html"));
  EXPECT_TRUE(absl::StartsWith(page, "<!DOCTYPE html>"));
  EXPECT_TRUE(absl::StrContains(page, "<polyline"));
  EXPECT_EQ(NumFiles(), 4);
}

TEST_F(CommandBinaryTest, EvaluatesDocuments) {
  std::string filler;
  for (int i = 0; i < 60; ++i) absl::StrAppend(&filler, " The lamp of room ", i, " is lit.");
  std::string lines;
  for (const char* code : {"7413", "2958"}) {
    const nlohmann::json document = {
        {"id", code},
        {"kind", "facts"},
        {"text", absl::StrCat(" The access code of the Marlow harbor is ", code, ".", filler)},
        {"questions",
         {{{"question",
            "\nQuestion: What is the access code of the Marlow harbor? Answer: The access code of "
            "the Marlow harbor is"},
           {"answer", absl::StrCat(" ", code, ".")}}}}};
    absl::StrAppend(&lines, document.dump(), "\n");
  }
  Write("documents.jsonl", lines);
  const Outcome outcome = Semkv(absl::StrCat(
      "evaluate --model ", model_, " --documents ", Path("documents.jsonl"),
      " --budget-fraction 0.25 --budget-fraction 0.5 --policy hybrid --policy sentence "
      "--policy cluster --policy pages --policy quest --policy window --threads 1 --json ",
      Path("a.json")));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(absl::StartsWith(outcome.out, "| kind |"));
  const nlohmann::json json = nlohmann::json::parse(*ReadFile(Path("a.json")));
  ASSERT_EQ(json["cells"].size(), 13u) << outcome.out;
  for (size_t i = 1; i < 13; ++i) {
    const nlohmann::json& cell = json["cells"][i];
    EXPECT_EQ(cell["questions"], 2);
    EXPECT_EQ(cell["fallbacks"].size(), 0u) << cell;
    // attended <= budget < context. A cell's context is a power of two near its documents' lengths,
    // which are up to sqrt(2) times as long; the larger budget is half of them.
    EXPECT_LE(cell["most_attended_of_budget"].get<double>(), 1.0) << cell;
    EXPECT_LE(cell["attended_tokens_mean"], cell["budget_mean"]);
    EXPECT_LE(cell["budget_mean"].get<double>(), 0.5 * cell["context"].get<double>() * 1.45);
  }
}

TEST_F(CommandBinaryTest, RefusesDocumentsThatCannotBeEvaluated) {
  Write("documents.jsonl", "{}");
  const std::string base = absl::StrCat("evaluate --model ", model_, " --documents ");
  EXPECT_TRUE(absl::StrContains(Refusal(base + Path("documents.jsonl")), "line 1"));
  EXPECT_TRUE(absl::StrContains(Refusal(base + Path("none")), Path("none")));
  Write(
      "documents.jsonl",
      R"({"id": "a", "kind": "b", "text": "c", "questions": [{"question": "d", "answer": "e"}]})");
  EXPECT_TRUE(absl::StrContains(Refusal(base + Path("documents.jsonl")), "is below 16 sinks"));
}

}  // namespace
}  // namespace semkv::command
