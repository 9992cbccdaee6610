#include "integration/reference/command/report_charts.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "integration/reference/command/report_table.h"

namespace semkv::command {
namespace {

// The plot's place within the mass chart, in pixels.
constexpr double kLeft = 52.0, kRight = 560.0, kTop = 14.0, kBottom = 268.0;
constexpr double kMassWidth = 690.0, kMassHeight = 316.0;
constexpr double kLabelHeight = 15.0;

// Where budgets and masses fall in the mass chart.
class MassAxes {
 public:
  explicit MassAxes(const RunMeasurement& run) {
    double lowest = 1.0;
    for (const PolicyMeasurement& policy : run.policies) {
      for (const BudgetPoint& point : policy.budget_sweep) {
        least_ = least_ == 0 ? point.budget : std::min(least_, point.budget);
        most_ = std::max(most_, point.budget);
        lowest = std::min(lowest, point.captured_mass_mean);
        if (std::find(budgets_.begin(), budgets_.end(), point.budget) == budgets_.end()) {
          budgets_.push_back(point.budget);
        }
      }
    }
    bottom_mass_ = std::floor(lowest * 10.0) / 10.0;
    if (bottom_mass_ >= 1.0) bottom_mass_ = 0.9;
  }

  bool empty() const { return budgets_.empty(); }
  const std::vector<int32_t>& budgets() const { return budgets_; }
  double bottom_mass() const { return bottom_mass_; }

  double X(int32_t budget) const {
    if (most_ == least_) return (kLeft + kRight) / 2.0;
    return kLeft + (kRight - kLeft) * std::log(static_cast<double>(budget) / least_) /
                       std::log(static_cast<double>(most_) / least_);
  }
  double Y(double mass) const {
    return kBottom - (kBottom - kTop) * (mass - bottom_mass_) / (1.0 - bottom_mass_);
  }

 private:
  int32_t least_ = 0;
  int32_t most_ = 0;
  double bottom_mass_ = 0.0;
  std::vector<int32_t> budgets_;
};

void AppendGrid(const MassAxes& axes, std::string* svg) {
  const double step = 1.0 - axes.bottom_mass() > 0.55 ? 0.2 : 0.1;
  for (double mass = 1.0; mass > axes.bottom_mass() - 1e-9; mass -= step) {
    absl::StrAppendFormat(svg,
                          "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
                          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.0f %%</text>\n",
                          kLeft, kRight, axes.Y(mass), axes.Y(mass), kLeft - 7.0,
                          axes.Y(mass) + 4.0, mass * 100.0);
  }
  for (int32_t budget : axes.budgets()) {
    absl::StrAppendFormat(svg,
                          "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
                          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n",
                          axes.X(budget), axes.X(budget), kTop, kBottom, axes.X(budget),
                          kBottom + 18.0, budget);
  }
  absl::StrAppendFormat(svg,
                        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">budget, tokens per KV "
                        "head and step</text>\n",
                        (kLeft + kRight) / 2.0, kBottom + 40.0);
}

void AppendLine(const MassAxes& axes, const PolicyMeasurement& policy, std::string* svg) {
  const std::string colour = PolicyColour(policy.name);
  std::string points;
  for (const BudgetPoint& point : policy.budget_sweep) {
    absl::StrAppendFormat(&points, "%.1f,%.1f ", axes.X(point.budget),
                          axes.Y(point.captured_mass_mean));
  }
  absl::StrAppendFormat(svg, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\"/>\n", points,
                        colour);
  for (const BudgetPoint& point : policy.budget_sweep) {
    absl::StrAppendFormat(svg,
                          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"><title>%s, "
                          "budget %d: %.2f %%</title></circle>\n",
                          axes.X(point.budget), axes.Y(point.captured_mass_mean), colour,
                          policy.name, point.budget, point.captured_mass_mean * 100.0);
  }
}

// Names at the right ends of the lines, pushed apart where they would overlap.
void AppendLineLabels(const MassAxes& axes, const RunMeasurement& run, std::string* svg) {
  std::vector<std::pair<double, const PolicyMeasurement*>> labels;
  for (const PolicyMeasurement& policy : run.policies) {
    if (policy.budget_sweep.empty()) continue;
    labels.emplace_back(axes.Y(policy.budget_sweep.back().captured_mass_mean), &policy);
  }
  std::stable_sort(labels.begin(), labels.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  double free_from = kTop;
  for (const auto& [wanted, policy] : labels) {
    const double y = std::max(wanted, free_from);
    const double x = axes.X(policy->budget_sweep.back().budget);
    absl::StrAppendFormat(svg,
                          "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\" class=\"lead\"/>"
                          "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\" class=\"name\">%s</text>\n",
                          x + 5.0, wanted, x + 22.0, y, PolicyColour(policy->name), x + 26.0,
                          y + 4.0, PolicyColour(policy->name), policy->name);
    free_from = y + kLabelHeight;
  }
}

}  // namespace

std::string PolicyColour(absl::string_view name) {
  constexpr std::pair<absl::string_view, absl::string_view> kColours[] = {
      {"dense", "#444444"},   {"hybrid", "#0068a8"},     {"sentence", "#00805d"},
      {"cluster", "#c75000"}, {"pages", "#a87900"},      {"quest", "#b0538a"},
      {"window", "#8a8a8a"},  {"sentencekv", "#3fa089"}, {"clusterkv", "#8c4a1f"}};
  for (const auto& [policy, colour] : kColours) {
    if (policy == name) return std::string(colour);
  }
  return "#000000";
}

std::string MassChart(const RunMeasurement& run) {
  const MassAxes axes(run);
  if (axes.empty()) return "";
  std::string svg = absl::StrFormat(
      "<svg viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" role=\"img\" aria-label=\"Captured mass "
      "against budget\">\n",
      kMassWidth, kMassHeight, kMassWidth);
  AppendGrid(axes, &svg);
  for (const PolicyMeasurement& policy : run.policies) {
    if (!policy.budget_sweep.empty()) AppendLine(axes, policy, &svg);
  }
  AppendLineLabels(axes, run, &svg);
  return svg + "</svg>\n";
}

std::string BytesChart(const RunMeasurement& run) {
  constexpr double kNameWidth = 96.0, kBarWidth = 350.0, kRow = 26.0, kBar = 16.0;
  double most = 1.0;
  for (const PolicyMeasurement& policy : run.policies) {
    most = std::max({most, policy.reads.dense_kv_bytes_per_token,
                     policy.reads.kv_bytes_per_token + policy.reads.index_bytes_per_token});
  }
  const double height = kRow * static_cast<double>(run.policies.size()) + 4.0;
  std::string svg = absl::StrFormat(
      "<svg viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" role=\"img\" aria-label=\"Bytes read per "
      "token\">\n",
      kMassWidth, height, kMassWidth);
  double y = 4.0;
  for (const PolicyMeasurement& policy : run.policies) {
    const ReadSummary& reads = policy.reads;
    const double dense = kBarWidth * reads.dense_kv_bytes_per_token / most;
    const double kv = kBarWidth * reads.kv_bytes_per_token / most;
    const double index = kBarWidth * reads.index_bytes_per_token / most;
    const std::string colour = PolicyColour(policy.name);
    absl::StrAppendFormat(
        &svg,
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\" class=\"name\" fill=\"%s\">%s</text>"
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"whole\"/>"
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>"
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\" "
        "fill-opacity=\"0.45\"/>",
        kNameWidth - 8.0, y + 13.0, colour, policy.name, kNameWidth, y, dense, kBar, kNameWidth, y,
        kv, kBar, colour, kNameWidth + kv, y, index, kBar, colour);
    absl::StrAppendFormat(
        &svg, "<text x=\"%.1f\" y=\"%.1f\">%s%s, %.1f %% of dense</text>\n",
        kNameWidth + std::max(dense, kv + index) + 8.0, y + 13.0,
        FormatBytes(reads.kv_bytes_per_token),
        index > 0.0 ? absl::StrCat(" + ", FormatBytes(reads.index_bytes_per_token)) : "",
        100.0 * (reads.kv_bytes_per_token + reads.index_bytes_per_token) /
            std::max(1.0, reads.dense_kv_bytes_per_token));
    y += kRow;
  }
  return svg + "</svg>\n";
}

}  // namespace semkv::command
