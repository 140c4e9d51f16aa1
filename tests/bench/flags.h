// The flags that the bench programs share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <thread>

#include "tests/bench/meter.h"

namespace shoal::bench {

struct Flags {
  std::string device = "cpu", only, json, clock = "wall";
  MeterOptions meter{.threads = static_cast<int>(std::thread::hardware_concurrency())};

  // `rows`: what --only looks at.
  void add_to(CLI::App& app, const std::string& rows) {
    app.add_option("--device", device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
    app.add_option("--threads", meter.threads, "CPU threads")->check(CLI::PositiveNumber);
    app.add_option("--repeats", meter.repeats, "the median of so many")->check(CLI::PositiveNumber);
    app.add_option("--only", only, "only " + rows + " contains this");
    app.add_option("--json", json, "also to this file");
    app.add_option("--clock", clock, "CPU: wall, or thread for a rough reading on a busy machine")
        ->check(CLI::IsMember({"wall", "thread"}));
    app.add_flag("--tiny", meter.tiny, "tiny shapes: whether it runs; the figures mean nothing");
    app.final_callback([this] { meter.clock = clock == "wall" ? Clock::kWall : Clock::kThread; });
  }
};

}  // namespace shoal::bench
