#include <catch2/catch.hpp>
#include <sstream>

#include "server/collect_env_command.h"
#include "server/status_fields.h"
#include "server/top_command.h"

namespace shoal {
namespace {

v1::GetStatusResponse busy_server() {
  EngineStatus engine;
  engine.memory = {{{"weights", 4 << 20, 4 << 20}, {"KV cache", 8 << 20, 9 << 20}, {"other", 0, 0}},
                   {{"weights", 4 << 20, 4 << 20}}};
  engine.rank_stats.resize(2);
  for (RankStats& rank : engine.rank_stats) {
    rank.steps = 200;
    rank.step_seconds = 4;
    rank.collective_seconds = 1;
    rank.bytes_sent[static_cast<int>(Traffic::kAllToAll)] = 10 << 20;
  }
  engine.rank_stats[0].expert_rows = 300;
  engine.rank_stats[1].expert_rows = 100;
  engine.experts = {.mean_imbalance = 1.5,
                    .worst_imbalance = 2.25,
                    .worst_layer = 3,
                    .rank_imbalance = 1.5,
                    .idle_experts = 7};
  engine.last_step_seconds = 0.021;
  v1::GetStatusResponse status;
  fill_observed(engine, {.ttft_p50 = 0.25, .ttft_p90 = 1.5, .tpot_p50 = 0.02, .tpot_p90 = 0.03},
                &status);
  status.set_state(v1::SERVER_STATE_READY);
  status.set_model("test/model");
  status.set_uptime_seconds(90061);
  status.set_world_size(2);
  status.set_generated_tokens(1000);
  status.set_prompt_tokens(500);
  status.set_steps(200);
  status.set_requests_running(3);
  status.set_requests_waiting(4);
  status.set_kv_pages_total(100);
  status.set_kv_pages_used(95);
  status.set_prefix_queries(200);
  status.set_prefix_hits(50);
  status.set_calls_ok(9);
  status.set_calls_rejected(2);
  return status;
}

TEST_CASE("top shows rates, latency, queue, pages, ranks, experts and the plan") {
  const v1::GetStatusResponse now = busy_server();
  v1::GetStatusResponse before = now;
  before.set_generated_tokens(800);
  before.set_prompt_tokens(500);
  before.mutable_rank_status(0)->set_steps(100);
  before.mutable_rank_status(0)->set_step_seconds(3);
  before.mutable_rank_status(0)->set_collective_seconds(0.5);
  before.mutable_rank_status(0)->set_bytes_all_to_all(8 << 20);
  const std::string text = top_picture(before, now, 2, "host:1", 200, false);
  for (const char* part :
       {"test/model at host:1, ready, up 1d 01:01:01, 2 ranks", "generated     100.0",
        "prompt       0.0", "last step 21 ms", "TTFT p50 250 ms p90 1.50 s",
        "per token p50 20 ms p90 30 ms", "running 3   waiting 4", "ok 9", "refused 2",
        "[###################.]  95.0 %   95 of 100   prefix hits 25.0 %",
        "busiest/mean 1.50 over layers, 2.25 in layer 3 (the worst), 1.50 over ranks   idle 7",
        "0          10 ms    5.00 ms      1.0 MiB      1.0 MiB      75.0 %",
        "13.0 MiB of 12.0 MiB (108 %)",
        "weights            8.0 MiB planned    8.0 MiB taken   100 %",
        "KV cache           8.0 MiB planned    9.0 MiB taken   112 %"}) {
    INFO(text);
    INFO(part);
    REQUIRE(text.find(part) != std::string::npos);
  }
  // Rank 1 has done nothing since: the mean of all its steps.
  REQUIRE(text.find("1          20 ms    5.00 ms") != std::string::npos);
  REQUIRE(text.find('\x1b') == std::string::npos);
  REQUIRE(text.find("other") == std::string::npos);
}

TEST_CASE("top's lines are cut at the width, colours not counted") {
  const v1::GetStatusResponse now = busy_server();
  for (const bool colour : {false, true}) {
    std::istringstream lines(top_picture(now, now, 1, "host:1", 60, colour));
    for (std::string line; std::getline(lines, line);) {
      int columns = 0;
      for (size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '\x1b') {
          i = line.find('m', i);
        } else {
          ++columns;
        }
      }
      REQUIRE(columns <= 60);
    }
  }
}

TEST_CASE("top shows a server that has done nothing yet") {
  v1::GetStatusResponse status;
  fill_observed({}, {}, &status);
  status.set_state(v1::SERVER_STATE_LOADING);
  status.set_detail("loading 40 %");
  const std::string text = top_picture(status, status, 0, "host:1", 80, false);
  REQUIRE(text.find("loading (loading 40 %)") != std::string::npos);
  REQUIRE(text.find("TTFT p50 - p90 -") != std::string::npos);
}

TEST_CASE("collect-env masks secrets and leaves out what is not its business") {
  const EnvSection section = relevant_environment(
      {"SHOAL_API_KEY=abc", "SHOAL_MODEL=m", "HF_TOKEN=hf_x", "NCCL_DEBUG=INFO=1", "MY_PASSWORD=p",
       "HOME=/root", "SHOAL_odd", "SLURM_JWT_SECRET=s", "OMPI_EMPTY="});
  using Entry = std::pair<std::string, std::string>;
  REQUIRE(section.entries == std::vector<Entry>{{"HF_TOKEN", "***"},
                                                {"NCCL_DEBUG", "INFO=1"},
                                                {"OMPI_EMPTY", ""},
                                                {"SHOAL_API_KEY", "***"},
                                                {"SHOAL_MODEL", "m"},
                                                {"SHOAL_odd", ""},
                                                {"SLURM_JWT_SECRET", "***"}});
}

TEST_CASE("collect-env knows this build and machine") {
  std::string all;
  for (const EnvSection& section : collect_env()) {
    all += "[" + section.name + "]";
    for (const auto& [name, value] : section.entries) all += name + "=" + value + ";";
  }
  INFO(all);
  for (const char* part :
       {"[build]version=" SHOAL_VERSION, "compiler=", "gRPC=1", "protobuf=3", "[CPU]model=",
        "cores=", "[memory]MemTotal=", "HugePages_Total=", "[GPUs]", "[network]", "lo="}) {
    INFO(part);
    REQUIRE(all.find(part) != std::string::npos);
  }
}

}  // namespace
}  // namespace shoal
