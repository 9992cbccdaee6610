#include "integration/reference/command/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "integration/reference/status_macros.h"

namespace semkv::command {
namespace {

constexpr char kAbout[] =
    "The KV cache of a long-context language model as an inverted file: a decode step reads the\n"
    "sentences and clusters that its query asks for instead of the whole context.";

constexpr char kRunAbout[] =
    "Lets a model read a document once and answers questions about it, once with dense attention\n"
    "and once with each retrieval policy.\n\n"
    "The document is prefilled densely. For every policy the cache is forked and indexed; for\n"
    "every question it is forked again, and the question is fed token by token as decode steps,\n"
    "so that the question's tokens, too, see only what the policy retrieves. Times, bytes and\n"
    "attended tokens come from these steps. Captured mass and KL come from a second, untimed pass\n"
    "over the dense run's answer (teacher forcing).";

constexpr char kRunFooter[] =
    "\nExample:\n"
    "  semkv run --model DIR --prompt-file book.txt --question 'Who owns the mill?' \\\n"
    "            --policy dense --policy hybrid --budget 1024 --html report.html\n\n"
    "Exit code: 0, or 2 with one line on stderr that says what is wrong; the output files are\n"
    "then as they were before.";

constexpr char kEvaluateAbout[] =
    "Measures policies over many documents, by kind of document, context and budget.\n\n"
    "Each line of the documents' file is a JSON object: {\"id\", \"kind\", \"text\", "
    "\"questions\":\n"
    "[{\"question\": what follows the text, \"answer\": expected text}]}, optionally \"context\", "
    "the\n"
    "nominal length in tokens to report under (else the power of two nearest to the real one).\n"
    "An answer is right if each of its tokens and the closing period has the highest logit after\n"
    "the ones before it (teacher forcing: the same verdict as greedy decoding). All decode steps\n"
    "are forced to be sparse.";

// What CLI11 fills before it is checked.
struct Raw {
  std::vector<std::string> policies;
  std::string kv_dtype = "f32";
  bool raw_questions = false;
};

// "\n", "\t" and "\\" as a shell passes them.
std::string Unescape(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out.push_back(text[i]);
      continue;
    }
    ++i;
    if (text[i] == 'n') {
      out.push_back('\n');
    } else if (text[i] == 't') {
      out.push_back('\t');
    } else if (text[i] == '\\') {
      out.push_back('\\');
    } else {
      out.append({'\\', text[i]});
    }
  }
  return out;
}

std::vector<std::string> PolicyNames() {
  std::vector<std::string> names;
  for (int32_t kind = 0; kind < SEMKV_NUM_POLICIES; ++kind) {
    names.emplace_back(semkv_policy_name(kind));
  }
  return names;
}

absl::Status SetPolicies(const std::vector<std::string>& names, std::vector<int32_t>* kinds) {
  for (const std::string& name : names) {
    const int32_t kind = semkv_policy_kind(name.c_str());
    if (kind < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--policy: unknown policy '", name, "'; there are ", absl::StrJoin(PolicyNames(), ", ")));
    }
    if (std::find(kinds->begin(), kinds->end(), kind) != kinds->end()) {
      return absl::InvalidArgumentError(absl::StrCat("--policy: '", name, "' is given twice"));
    }
    kinds->push_back(kind);
  }
  return absl::OkStatus();
}

void AddModelOptions(CLI::App* app, ModelOptions* model, Raw* raw) {
  app->add_option("--model", model->directory,
                  "Hugging Face Llama directory: config.json, safetensors, tokenizer.json")
      ->required();
  app->add_option("--threads", model->num_threads, "CPU threads; 0: all cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_option("--kv-dtype", raw->kv_dtype, "type of cached keys and values: f32, f16, bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
}

void AddPolicyOptions(CLI::App* app, PolicyOverrides* overrides, Raw* raw) {
  app->add_option("--policy", raw->policies,
                  "what a decode step reads, may be repeated: " +
                      absl::StrJoin(PolicyNames(), ", ") + " [dense, hybrid]")
      ->allow_extra_args(false);
  const CLI::Range tokens(0, 1 << 30);
  app->add_option("--sinks", overrides->sinks, "first tokens, always read [16]")->check(tokens);
  app->add_option("--recent", overrides->recent,
                  "last tokens, always read [64, less if the budget is below 512; window: all]")
      ->check(CLI::Range(1, 1 << 30));
  app->add_option("--dense-layers", overrides->dense_layers,
                  "first layers that read everything; -1: 2 from 12 layers on, else 0 [-1]")
      ->check(CLI::Range(-1, 1 << 20));
  app->add_option("--cluster-size", overrides->cluster_size,
                  "mean tokens per cluster [16; clusterkv: 80]")
      ->check(CLI::Range(1, 8192));
  app->add_option_function<std::string>(
         "--centroids",
         [overrides](const std::string& name) {
           static const std::map<std::string, int32_t> kForms = {{"int8", SEMKV_CENTROID_INT8},
                                                                 {"int4", SEMKV_CENTROID_INT4},
                                                                 {"bf16", SEMKV_CENTROID_BF16},
                                                                 {"f32", SEMKV_CENTROID_F32}};
           overrides->centroid_form = kForms.at(name);
         },
         "how the lists' vectors are kept: int8, int4, bf16, f32 [int4; papers' modes: f32]")
      ->check(CLI::IsMember({"int8", "int4", "bf16", "f32"}));
  app->add_option("--lone-share", overrides->lone_share,
                  "of the clusters, so many hold one token each [0; hybrid, cluster: 0.25]")
      ->check(CLI::Range(0.0, 0.999999));
  app->add_option("--mass-target", overrides->mass_target,
                  "stop below the budget once this estimated share of the attention mass is read; "
                  "0: always fill the budget [0]")
      ->check(CLI::Range(0.0, 0.999999));
  app->add_option("--keep-factor", overrides->keep_factor,
                  "of sentencekv: how many budgets of the document's tokens stay in reach; 0: all "
                  "[3]")
      ->check(CLI::Range(0.0, 1024.0));
  app->add_flag("--estimate-rest", overrides->estimate_rest,
                "add an estimate of what was scored but not read");
}

void AddRunOptions(CLI::App* app, RunOptions* run, Raw* raw) {
  AddModelOptions(app, &run->model, raw);
  app->add_option("--prompt-file", run->prompt_file, "the document, UTF-8 text")->required();
  app->add_option("--question", run->questions, "asked after the document, may be repeated")
      ->allow_extra_args(false);
  app->add_option("--questions-file", run->questions_file,
                  "JSON array of questions: strings, or {\"question\", \"answer\" (expected)}");
  CLI::Option* question_template =
      app->add_option("--template", run->question_template,
                      "how a question follows the document; {} is the question, \\n a new line "
                      "[\\nQuestion: {} Answer:]");
  app->add_flag("--raw", raw->raw_questions, "questions follow the document exactly as given")
      ->excludes(question_template);
  AddPolicyOptions(app, &run->overrides, raw);
  app->add_option("--budget", run->budget,
                  "tokens read per KV head and step, sinks and recent ones included")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  app->add_option("--min-context", run->overrides.min_context,
                  "shorter contexts are read densely [4096]")
      ->check(CLI::Range(0, 1 << 30));
  app->add_flag("--force-sparse", run->overrides.force_sparse,
                "never read densely because the context is short");
  app->add_option("--max-new-tokens", run->max_new_tokens, "longest answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app->add_option("--stop", run->stop,
                  "an answer ends with a token that holds one of these characters; '': only with "
                  "the model's end token [.\\n]");
  app->add_option("--temperature", run->temperature, "0: greedy; above: sample")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app->add_option("--seed", run->seed, "of sampling, the same for every policy")
      ->capture_default_str();
  app->add_option("--json", run->json_file, "write the measurements there");
  app->add_option("--html", run->html_file,
                  "write a page with maps of what was read, and mass against budget, there");
  app->footer(kRunFooter);
}

void AddEvaluateOptions(CLI::App* app, EvaluateOptions* evaluate, Raw* raw) {
  AddModelOptions(app, &evaluate->model, raw);
  app->add_option("--documents", evaluate->documents_file, "documents, one JSON object a line")
      ->required();
  app->add_option("--budget-fraction", evaluate->budget_fractions,
                  "budget as a share of the context, may be repeated [0.125]")
      ->check(CLI::Range(1e-6, 1.0))
      ->allow_extra_args(false);
  AddPolicyOptions(app, &evaluate->overrides, raw);
  app->add_flag("--prefill-question", evaluate->prefill_question,
                "prefill the question too and index once per question, as SentenceKV's authors do; "
                "otherwise lists know the document alone and the question is decoded");
  app->add_option("--json", evaluate->json_file, "write the table's numbers there");
}

void SetKvDtype(const std::string& name, ModelOptions* model) {
  const std::map<std::string, int32_t> dtypes = {
      {"f32", SEMKV_DTYPE_F32}, {"f16", SEMKV_DTYPE_F16}, {"bf16", SEMKV_DTYPE_BF16}};
  model->kv_dtype = dtypes.at(name);
}

absl::StatusOr<CommandLine> CheckRun(RunOptions run, const Raw& raw) {
  SetKvDtype(raw.kv_dtype, &run.model);
  run.question_template = raw.raw_questions ? "{}" : Unescape(run.question_template);
  run.stop = Unescape(run.stop);
  if (run.question_template.find("{}") == std::string::npos) {
    return absl::InvalidArgumentError("--template: needs {} where the question goes");
  }
  if (run.questions.empty() && run.questions_file.empty()) {
    return absl::InvalidArgumentError("no question: give --question or --questions-file");
  }
  if (!run.json_file.empty() && run.json_file == run.html_file) {
    return absl::InvalidArgumentError(
        absl::StrCat("--json and --html name the same file: ", run.json_file));
  }
  const std::vector<std::string> names =
      raw.policies.empty() ? std::vector<std::string>{"dense", "hybrid"} : raw.policies;
  SEMKV_RETURN_IF_ERROR(SetPolicies(names, &run.policies));
  for (int32_t kind : run.policies) {
    SEMKV_RETURN_IF_ERROR(MakePolicy(kind, run.budget, run.overrides).status());
  }
  return run;
}

absl::StatusOr<CommandLine> CheckEvaluate(EvaluateOptions evaluate, const Raw& raw) {
  SetKvDtype(raw.kv_dtype, &evaluate.model);
  evaluate.overrides.force_sparse = true;
  if (evaluate.budget_fractions.empty()) evaluate.budget_fractions.push_back(0.125);
  const std::vector<std::string> names =
      raw.policies.empty() ? std::vector<std::string>{"hybrid"} : raw.policies;
  SEMKV_RETURN_IF_ERROR(SetPolicies(names, &evaluate.policies));
  // Dense attention is what the others are compared with: evaluated anyway, and once.
  evaluate.policies.erase(
      std::remove(evaluate.policies.begin(), evaluate.policies.end(), SEMKV_POLICY_DENSE),
      evaluate.policies.end());
  return evaluate;
}

std::string OneLine(absl::string_view text) { return absl::StrReplaceAll(text, {{"\n", " "}}); }

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CLI::App app(kAbout, "semkv");
  app.set_version_flag("--version", std::string("semkv ") + semkv_version());
  RunOptions run;
  EvaluateOptions evaluate;
  Raw raw;
  CLI::App* run_app = app.add_subcommand("run", kRunAbout);
  AddRunOptions(run_app, &run, &raw);
  CLI::App* evaluate_app = app.add_subcommand("evaluate", kEvaluateAbout);
  AddEvaluateOptions(evaluate_app, &evaluate, &raw);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    return Message{app.help()};
  } catch (const CLI::CallForVersion&) {
    return Message{absl::StrCat("semkv ", semkv_version(), "\n")};
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(OneLine(error.what()));
  }
  if (run_app->parsed()) return CheckRun(std::move(run), raw);
  if (evaluate_app->parsed()) return CheckEvaluate(std::move(evaluate), raw);
  return absl::InvalidArgumentError("say what to do: run or evaluate (semkv --help)");
}

absl::StatusOr<semkv_policy> MakePolicy(int32_t kind, int32_t budget,
                                        const PolicyOverrides& overrides) {
  semkv_policy policy;
  if (semkv_policy_init(&policy, kind) != SEMKV_OK) {
    return absl::InvalidArgumentError(absl::StrCat(kind, " is no policy"));
  }
  policy.budget = budget;
  policy.sinks = overrides.sinks.value_or(policy.sinks);
  policy.recent = overrides.recent.value_or(policy.recent);
  policy.min_context = overrides.min_context.value_or(policy.min_context);
  policy.dense_layers = overrides.dense_layers.value_or(policy.dense_layers);
  policy.cluster_size = overrides.cluster_size.value_or(policy.cluster_size);
  policy.centroid_form = overrides.centroid_form.value_or(policy.centroid_form);
  policy.lone_share = overrides.lone_share.value_or(policy.lone_share);
  policy.mass_target = overrides.mass_target.value_or(policy.mass_target);
  if (kind == SEMKV_POLICY_SENTENCEKV) {
    policy.keep_factor = overrides.keep_factor.value_or(policy.keep_factor);
  }
  policy.force_sparse = overrides.force_sparse ? 1 : 0;
  policy.estimate_rest = overrides.estimate_rest ? 1 : 0;
  const int64_t least = LeastBudget(policy);
  if (kind != SEMKV_POLICY_DENSE && budget < least) {
    return absl::InvalidArgumentError(absl::StrCat("a budget of ", budget, " tokens is below ",
                                                   policy.sinks, " sinks + ", least - policy.sinks,
                                                   " recent tokens = ", least));
  }
  return policy;
}

int64_t LeastBudget(const semkv_policy& policy) {
  constexpr int32_t kLeastRecent = 16;  // where the library chooses
  return int64_t{policy.sinks} + (policy.recent == -1 ? kLeastRecent : policy.recent);
}

int32_t MostAttended(const semkv_policy& policy, int32_t max_tokens) {
  // SentenceKV's warm-up steps read what it keeps and all later tokens, however many those are.
  if (policy.keep_factor > 0.0f && policy.warm_up > 0) return max_tokens;
  constexpr int32_t kWindowTokens = 320;  // ClusterKV's window of decoded tokens
  const int32_t beside = policy.open_beside != 0 ? kWindowTokens : 0;
  return static_cast<int32_t>(std::min<int64_t>(int64_t{policy.budget} + beside, max_tokens));
}

int32_t QueryWindow(const semkv_policy& policy) {
  constexpr int32_t kPaperWindow = 32;
  return policy.keep_factor > 0.0f ? kPaperWindow : 0;
}

std::string AskWith(absl::string_view question_template, absl::string_view question) {
  return absl::StrReplaceAll(question_template, {{"{}", question}});
}

}  // namespace semkv::command
