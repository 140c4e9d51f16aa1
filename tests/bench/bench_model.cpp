// shoal_bench_model: decode and prefill steps of whole models with made-up weights, beside what
// their bytes and FLOPs allow on this device. Needs the memory of the models (--only picks). Run it
// on a quiet machine.
#include <cstdio>

#include "tests/bench/flags.h"
#include "tests/bench/model_bench.h"
#include "tests/bench/report.h"
#include "tests/bench/run_main.h"

namespace shoal::bench {
namespace {

int run(int argc, char** argv) {
  CLI::App app("Times steps of whole models with made-up weights, beside the device's limits");
  Flags flags;
  flags.add_to(app, "models whose \"name weights\"");
  CLI11_PARSE(app, argc, argv);
  const ModelReport report = run_models({flags.device, flags.meter, flags.only});
  std::printf("\n%zu rows\n%s", report.rows.size(),
              flags.meter.tiny ? "--tiny: these figures mean nothing\n" : "");
  if (report.rows.empty() && report.skipped.empty()) {
    throw_invalid("--only {}: no model has this in it", flags.only);
  }
  if (!flags.json.empty()) write_json(flags.json, report.json());
  return 0;
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  return shoal::bench::run_main("shoal_bench_model", argc, argv, shoal::bench::run);
}
