#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "integration/reference/command/options.h"
#include "integration/reference/command/prompt.h"

namespace semkv::command {
namespace {

std::vector<std::string> RunArguments(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"run", "--model",    "m",   "--prompt-file",
                                        "p",   "--question", "Why?"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

RunOptions ParseRun(const std::vector<std::string>& more) {
  absl::StatusOr<CommandLine> line = ParseCommandLine(RunArguments(more));
  EXPECT_TRUE(line.ok()) << line.status();
  return line.ok() ? std::get<RunOptions>(*line) : RunOptions();
}

// The error of a command line that must be refused: one line.
std::string Refusal(const std::vector<std::string>& arguments) {
  const absl::Status status = ParseCommandLine(arguments).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(absl::StrContains(status.message(), "\n"));
  return std::string(status.message());
}

TEST(CommandOptionsTest, DefaultsAreDenseAndHybridAndGreedy) {
  const RunOptions run = ParseRun({});
  EXPECT_EQ(run.policies, (std::vector<int32_t>{SEMKV_POLICY_DENSE, SEMKV_POLICY_HYBRID}));
  EXPECT_EQ(run.budget, 2048);
  EXPECT_EQ(run.temperature, 0.0f);
  EXPECT_EQ(AskWith(run.question_template, "Why?"), "\nQuestion: Why? Answer:");
  EXPECT_EQ(run.model.kv_dtype, SEMKV_DTYPE_F32);
}

TEST(CommandOptionsTest, EveryRunOptionIsRead) {
  const RunOptions run = ParseRun({"--question",
                                   "And?",
                                   "--policy",
                                   "window",
                                   "--policy",
                                   "dense",
                                   "--budget",
                                   "256",
                                   "--sinks",
                                   "8",
                                   "--recent",
                                   "32",
                                   "--min-context",
                                   "0",
                                   "--force-sparse",
                                   "--dense-layers",
                                   "1",
                                   "--cluster-size",
                                   "64",
                                   "--centroids",
                                   "int4",
                                   "--mass-target",
                                   "0.5",
                                   "--estimate-rest",
                                   "--threads",
                                   "3",
                                   "--kv-dtype",
                                   "bf16",
                                   "--max-new-tokens",
                                   "7",
                                   "--stop",
                                   "!\\n",
                                   "--temperature",
                                   "0.5",
                                   "--seed",
                                   "9",
                                   "--json",
                                   "a.json",
                                   "--html",
                                   "a.html",
                                   "--template",
                                   "Q:{}\\nA:"});
  EXPECT_EQ(run.questions, (std::vector<std::string>{"Why?", "And?"}));
  EXPECT_EQ(run.policies, (std::vector<int32_t>{SEMKV_POLICY_WINDOW, SEMKV_POLICY_DENSE}));
  EXPECT_EQ(run.model.num_threads, 3);
  EXPECT_EQ(run.model.kv_dtype, SEMKV_DTYPE_BF16);
  EXPECT_EQ(run.max_new_tokens, 7);
  EXPECT_EQ(run.stop, "!\n");
  EXPECT_EQ(run.temperature, 0.5f);
  EXPECT_EQ(run.seed, 9u);
  EXPECT_EQ(run.json_file, "a.json");
  EXPECT_EQ(run.html_file, "a.html");
  EXPECT_EQ(AskWith(run.question_template, "x"), "Q:x\nA:");
  const absl::StatusOr<semkv_policy> policy =
      MakePolicy(SEMKV_POLICY_CLUSTER, run.budget, run.overrides);
  ASSERT_TRUE(policy.ok());
  EXPECT_EQ(policy->budget, 256);
  EXPECT_EQ(policy->sinks, 8);
  EXPECT_EQ(policy->recent, 32);
  EXPECT_EQ(policy->min_context, 0);
  EXPECT_EQ(policy->force_sparse, 1);
  EXPECT_EQ(policy->dense_layers, 1);
  EXPECT_EQ(policy->cluster_size, 64);
  EXPECT_EQ(policy->centroid_form, SEMKV_CENTROID_INT4);
  EXPECT_EQ(policy->mass_target, 0.5f);
  EXPECT_EQ(policy->estimate_rest, 1);
}

TEST(CommandOptionsTest, RawQuestionsFollowTheDocumentAsGiven) {
  EXPECT_EQ(AskWith(ParseRun({"--raw"}).question_template, "\nSo {}"), "\nSo {}");
}

TEST(CommandOptionsTest, RefusalsNameTheOptionAndTheNumbers) {
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--policy", "best"})), "'best'"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--policy", "best"})), "hybrid"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--policy", "dense", "--policy", "dense"})),
                                "twice"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--budget", "31"})),
                                "31 tokens is below 16 sinks + 16 recent tokens = 32"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--budget", "79", "--recent", "64"})),
                                "79 tokens is below 16 sinks + 64 recent tokens = 80"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--budget", "many"})), "--budget"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--recent", "0"})), "--recent"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--kv-dtype", "f8"})), "--kv-dtype"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--centroids", "int2"})), "--centroids"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--template", "Q?"})), "--template"));
  EXPECT_TRUE(
      absl::StrContains(Refusal(RunArguments({"--json", "a", "--html", "a"})), "same file: a"));
  EXPECT_TRUE(absl::StrContains(Refusal(RunArguments({"--wrong"})), "--wrong"));
  EXPECT_TRUE(
      absl::StrContains(Refusal({"run", "--model", "m", "--prompt-file", "p"}), "no question"));
  EXPECT_TRUE(absl::StrContains(Refusal({"run", "--prompt-file", "p"}), "--model"));
  EXPECT_TRUE(absl::StrContains(Refusal({}), "run or evaluate"));
}

TEST(CommandOptionsTest, ABudgetIsNotCheckedWhereOnlyDenseReads) {
  EXPECT_EQ(ParseRun({"--policy", "dense", "--budget", "1"}).budget, 1);
}

TEST(CommandOptionsTest, HelpNamesEveryPolicyAndOption) {
  for (const char* command : {"run", "evaluate"}) {
    const absl::StatusOr<CommandLine> line = ParseCommandLine({command, "--help"});
    ASSERT_TRUE(line.ok());
    const std::string& help = std::get<Message>(*line).text;
    for (const char* word : {"--model", "--policy", "clusterkv", "--sinks", "--json"}) {
      EXPECT_TRUE(absl::StrContains(help, word)) << command << " " << word;
    }
  }
  const absl::StatusOr<CommandLine> version = ParseCommandLine({"--version"});
  ASSERT_TRUE(version.ok());
  EXPECT_EQ(std::get<Message>(*version).text, std::string("semkv ") + semkv_version() + "\n");
}

TEST(CommandOptionsTest, EvaluateAlwaysForcesSparseRowsAndComparesWithDense) {
  const absl::StatusOr<CommandLine> line = ParseCommandLine(
      {"evaluate", "--model", "m", "--documents", "d", "--policy", "dense", "--policy", "quest",
       "--budget-fraction", "0.125", "--budget-fraction", "0.0625"});
  ASSERT_TRUE(line.ok()) << line.status();
  const EvaluateOptions& evaluate = std::get<EvaluateOptions>(*line);
  EXPECT_EQ(evaluate.policies, std::vector<int32_t>{SEMKV_POLICY_QUEST});
  EXPECT_EQ(evaluate.budget_fractions, (std::vector<double>{0.125, 0.0625}));
  EXPECT_TRUE(evaluate.overrides.force_sparse);
  EXPECT_TRUE(absl::StrContains(
      Refusal({"evaluate", "--model", "m", "--documents", "d", "--budget-fraction", "1.5"}),
      "--budget-fraction"));
}

TEST(CommandPromptTest, QuestionsAreStringsOrObjectsOrNamed) {
  const absl::StatusOr<std::vector<Question>> plain =
      ParseQuestions(R"(["a", {"question": "b", "answer": "c", "depth": 1}])");
  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_EQ(plain->size(), 2u);
  EXPECT_EQ((*plain)[0].text, "a");
  EXPECT_EQ((*plain)[1].text, "b");
  EXPECT_EQ((*plain)[1].expected, "c");
  const absl::StatusOr<std::vector<Question>> named = ParseQuestions(R"({"questions": ["a"]})");
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(named->size(), 1u);
  EXPECT_TRUE(absl::StrContains(ParseQuestions(R"(["a", 1])").status().message(), "entry 1"));
  EXPECT_FALSE(ParseQuestions("{").ok());
  EXPECT_FALSE(ParseQuestions("3").ok());
}

}  // namespace
}  // namespace semkv::command
