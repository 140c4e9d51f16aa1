#include "runtime/engine/rank_report.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Of what was counted before, with each report: 0.9^10 = 0.35.
constexpr double kKeep = 0.9;

}  // namespace

static_assert(std::is_trivially_copyable_v<RankStats>);

std::vector<std::byte> RankReport::serialize() const {
  std::vector<std::byte> bytes(sizeof stats + sizeof layers +
                               expert_rows.size() * sizeof(uint64_t));
  std::byte* out = bytes.data();
  std::memcpy(out, &stats, sizeof stats);
  std::memcpy(out + sizeof stats, &layers, sizeof layers);
  if (!expert_rows.empty()) {
    std::memcpy(out + sizeof stats + sizeof layers, expert_rows.data(),
                expert_rows.size() * sizeof(uint64_t));
  }
  return bytes;
}

RankReport RankReport::deserialize(std::span<const std::byte> bytes) {
  RankReport report;
  constexpr size_t kHead = sizeof(RankStats) + sizeof(uint64_t);
  SHOAL_CHECK(bytes.size() >= kHead && (bytes.size() - kHead) % sizeof(uint64_t) == 0,
              "{} bytes are no report", bytes.size());
  std::memcpy(&report.stats, bytes.data(), sizeof report.stats);
  std::memcpy(&report.layers, bytes.data() + sizeof report.stats, sizeof report.layers);
  report.expert_rows.resize((bytes.size() - kHead) / sizeof(uint64_t));
  SHOAL_CHECK(report.layers == 0 ? report.expert_rows.empty()
                                 : report.expert_rows.size() % report.layers == 0,
              "{} counts of {} layers", report.expert_rows.size(), report.layers);
  if (!report.expert_rows.empty()) {
    std::memcpy(report.expert_rows.data(), bytes.data() + kHead,
                report.expert_rows.size() * sizeof(uint64_t));
  }
  return report;
}

void ExpertBalanceMeter::update(std::span<const RankReport> ranks) {
  const uint64_t layers = ranks.empty() ? 0 : ranks.front().layers;
  if (layers == 0) return;
  last_.resize(ranks.size());
  recent_.resize(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) {
    const std::vector<uint64_t>& rows = ranks[r].expert_rows;
    SHOAL_CHECK(ranks[r].layers == layers, "rank {} counts {} layers of {}", r, ranks[r].layers,
                layers);
    last_[r].resize(rows.size());
    recent_[r].resize(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      recent_[r][i] = kKeep * recent_[r][i] + static_cast<double>(rows[i] - last_[r][i]);
    }
    last_[r] = rows;
  }
  ExpertBalance balance;
  double sum_of_layers = 0;
  int64_t layers_used = 0;
  std::vector<double> of_rank(ranks.size(), 0);
  for (uint64_t layer = 0; layer < layers; ++layer) {
    double most = 0, sum = 0;
    size_t experts = 0;
    for (size_t r = 0; r < ranks.size(); ++r) {
      const size_t local = recent_[r].size() / layers;
      for (size_t e = layer * local; e < (layer + 1) * local; ++e) {
        most = std::max(most, recent_[r][e]);
        sum += recent_[r][e];
        of_rank[r] += recent_[r][e];
        if (last_[r][e] == 0) ++balance.idle_experts;
      }
      experts += local;
    }
    if (sum <= 0) continue;
    const double imbalance = most * static_cast<double>(experts) / sum;
    ++layers_used;
    sum_of_layers += imbalance;
    if (imbalance > balance.worst_imbalance) {
      balance.worst_imbalance = imbalance;
      balance.worst_layer = static_cast<int32_t>(layer);
    }
  }
  if (layers_used == 0) return;
  balance.mean_imbalance = sum_of_layers / static_cast<double>(layers_used);
  const double total = std::accumulate(of_rank.begin(), of_rank.end(), 0.0);
  balance.rank_imbalance =
      *std::max_element(of_rank.begin(), of_rank.end()) * static_cast<double>(ranks.size()) / total;
  balance_ = balance;
}

uint64_t resident_bytes() {
  // Pages: all, resident, ..
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  unsigned long long all = 0, resident = 0;
  const int read = std::fscanf(file, "%llu %llu", &all, &resident);
  std::fclose(file);
  return read == 2 ? resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

}  // namespace shoal
