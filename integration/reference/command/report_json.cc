#include "integration/reference/command/report_json.h"

#include <nlohmann/json.hpp>

namespace semkv::command {
namespace {

using Json = nlohmann::ordered_json;

Json PolicyJson(const PolicyMeasurement& policy) {
  Json json = {{"name", policy.name},
               {"answers", policy.answers},
               {"agrees_with_dense", policy.agrees_with_dense},
               {"mean_kl_to_dense", policy.mean_kl_to_dense},
               {"attended_tokens_mean", policy.reads.attended_tokens_mean},
               {"captured_mass_mean", policy.captured_mass_mean},
               {"captured_mass_p5", policy.captured_mass_p5},
               {"kv_bytes_read_per_token", policy.reads.kv_bytes_per_token},
               {"index_bytes_read_per_token", policy.reads.index_bytes_per_token},
               {"dense_kv_bytes_per_token", policy.reads.dense_kv_bytes_per_token},
               {"ms_per_token", policy.ms_per_token},
               {"select_ms_per_token", policy.select_ms_per_token},
               {"index_build_ms", policy.index_build_ms},
               {"index_bytes", policy.index_bytes}};
  Json fallbacks = Json::object();
  for (const auto& [reason, count] : policy.reads.fallbacks) fallbacks[reason] = count;
  json["fallbacks"] = std::move(fallbacks);
  Json sweep = Json::array();
  for (const BudgetPoint& point : policy.budget_sweep) {
    sweep.push_back({{"budget", point.budget}, {"captured_mass_mean", point.captured_mass_mean}});
  }
  json["budget_sweep"] = std::move(sweep);
  return json;
}

}  // namespace

std::string RunJson(const RunMeasurement& run) {
  Json json = {{"model", run.model},
               {"version", run.version},
               {"document", run.document},
               {"context_tokens", run.context_tokens},
               {"budget", run.budget},
               {"threads", run.threads},
               {"kv_dtype", KvDtypeName(run.geometry.kv_dtype)},
               {"kv_bytes", run.geometry.TokenBytes() * run.context_tokens}};
  Json questions = Json::array();
  for (const Question& question : run.questions) {
    Json entry = {{"question", question.text}};
    if (!question.expected.empty()) entry["expected"] = question.expected;
    questions.push_back(std::move(entry));
  }
  json["questions"] = std::move(questions);
  Json policies = Json::array();
  for (const PolicyMeasurement& policy : run.policies) {
    Json entry = PolicyJson(policy);
    entry["prefill_ms"] = run.prefill_ms;
    policies.push_back(std::move(entry));
  }
  json["policies"] = std::move(policies);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace semkv::command
