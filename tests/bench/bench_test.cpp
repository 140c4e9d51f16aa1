// That the benches run, with tiny shapes, and that their tables are whole: on the CPU and, where
// the build has it, on a GPU or the emulated one. What they measure is not looked at.
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "runtime/backend.h"
#include "tests/bench/model_bench.h"
#include "tests/bench/verb_cases.h"

namespace shoal::bench {
namespace {

const MeterOptions kTiny{.threads = 2, .clock = Clock::kWall, .repeats = 1, .tiny = true};

std::vector<std::string> devices() {
  std::vector<std::string> names{"cpu"};
  if (gpu_count() > 0) names.emplace_back("cuda");
  return names;
}

size_t rows_of(const std::vector<Row>& rows, const std::string& verb) {
  return std::count_if(rows.begin(), rows.end(), [&](const Row& row) { return row.verb == verb; });
}

TEST_CASE("the table of kernels has every verb at every shape, with numbers in it") {
  for (const std::string& device : devices()) {
    CAPTURE(device);
    const std::unique_ptr<Meter> meter = make_meter(device, kTiny);
    CHECK(meter->bandwidth() > 0);
    CHECK(meter->math_rate() > 0);
    Report report(*meter, "");
    const KernelPlan plan = tiny(device == "cpu" ? cpu_plan() : gpu_plan());
    run_kernels(*meter, report, plan);

    std::set<std::string> verbs, labels;
    for (const Row& row : report.rows()) {
      CHECK((std::isfinite(row.seconds) && row.seconds > 0));
      CHECK((std::isfinite(row.bytes) && row.bytes > 0));
      CHECK((std::isfinite(row.flops) && row.flops >= 0));
      verbs.insert(row.verb);
      labels.insert(row.verb + " " + row.shape + " " + row.dtype);
    }
    CHECK(labels.size() == report.rows().size());
    // All of kernels/ops.h but dequantize, which no step calls; mla_prefill has begin and finish in
    // it.
    std::set<std::string> all{"add",         "add_rms_norm",   "combine",     "copy",
                              "embedding",   "gather_cache",   "gather_rows", "gqa_attention",
                              "head_linear", "grouped_linear", "linear",      "mla_decode",
                              "mla_prefill", "rms_norm",       "rope",        "route",
                              "silu_mul",    "sort_by_expert", "write_cache"};
    if (device == "cuda") all.insert("sample");
    CHECK(verbs == all);
    size_t linears = 0, grouped = 0;
    for (const ModelShape& model : plan.models) {
      linears += model.weights.size() * model.linears.size() * plan.linear_rows.size();
      linears += plan.batches.size();  // lm_head
      if (model.experts == 0) continue;
      linears += model.weights.size() * 2;  // as experts
      grouped += model.weights.size() * 2 * plan.tokens.size();
    }
    CHECK(rows_of(report.rows(), "linear") == linears);
    CHECK(rows_of(report.rows(), "grouped_linear") == grouped);
    CHECK(rows_of(report.rows(), "mla_decode") == plan.batches.size() * plan.contexts.size());
    CHECK(report.json()["rows"].size() == report.rows().size());
  }
}

TEST_CASE("--only picks rows by any part of their text") {
  const std::unique_ptr<Meter> meter = make_meter("cpu", kTiny);
  Report report(*meter, "q_proj M=1 ");
  run_kernels(*meter, report, tiny(cpu_plan()));
  CHECK(report.rows().size() == 6);  // of V2-Lite and Qwen, in three types each
}

TEST_CASE("a row without a time is refused") {
  const std::unique_ptr<Meter> meter = make_meter("cpu", kTiny);
  Report report(*meter, "");
  CHECK_THROWS(report.add({"linear", "x", "float32", std::nan(""), 1, 1}));
  CHECK_THROWS(report.add({"linear", "x", "float32", 0, 1, 1}));
}

TEST_CASE("the table of models has prefill and decode of each, with numbers in it") {
  for (const std::string& device : devices()) {
    CAPTURE(device);
    const ModelReport report = run_models({device, kTiny, ""});
    CHECK(report.skipped.empty());
    // Two prefills, and decode of three batches; once more from graphs where the device has them.
    const size_t rows_of_model = 2 + 3 * (device == "cpu" ? 1 : 2);
    CHECK(report.rows.size() == model_cases(true).size() * rows_of_model);
    std::set<std::string> labels;
    for (const ModelRow& row : report.rows) {
      CHECK((std::isfinite(row.seconds) && row.seconds > 0));
      CHECK((std::isfinite(row.limit_seconds) && row.limit_seconds > 0));
      labels.insert(row.model + row.weights + row.step);
    }
    CHECK(labels.size() == report.rows.size());
  }
}

}  // namespace
}  // namespace shoal::bench
