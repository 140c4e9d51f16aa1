// shoal_bench_kernels: measures what a device can do at most, then each verb at the shapes of real
// models, and prints the share of the limits that it reaches. Run it on a quiet machine.
#include <cstdio>

#include "tests/bench/flags.h"
#include "tests/bench/run_main.h"
#include "tests/bench/verb_cases.h"

namespace shoal::bench {
namespace {

int run(int argc, char** argv) {
  CLI::App app(
      "Times every verb at the shapes of real models, beside the device's measured limits");
  Flags flags;
  flags.add_to(app, "rows whose \"verb shape weights\"");
  CLI11_PARSE(app, argc, argv);
  const std::unique_ptr<Meter> meter = make_meter(flags.device, flags.meter);
  Report report(*meter, flags.only);
  const KernelPlan plan = flags.device == "cpu" ? cpu_plan() : gpu_plan();
  run_kernels(*meter, report, flags.meter.tiny ? tiny(plan) : plan);
  std::printf("\n%zu rows\n%s", report.rows().size(),
              flags.meter.tiny ? "--tiny: these figures mean nothing\n" : "");
  if (report.rows().empty()) throw_invalid("--only {}: no row has this in it", flags.only);
  if (!flags.json.empty()) write_json(flags.json, report.json());
  return 0;
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  return shoal::bench::run_main("shoal_bench_kernels", argc, argv, shoal::bench::run);
}
