#include "server/service_notify.h"

#include <catch2/catch.hpp>

namespace shoal {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

TEST_CASE("an engine with work that takes no step stops being alive, and lives again with the next") {
  ProgressWatch watch(seconds(150));
  const auto start = ProgressWatch::Clock::time_point{} + std::chrono::hours(1);
  EngineStatus status;
  status.state = EngineState::kReady;
  status.steps = 7;
  CHECK(watch.alive(status, start));
  // Without work there is nothing to do.
  CHECK(watch.alive(status, start + minutes(60)));
  status.unfinished = 1;
  CHECK(watch.alive(status, start + minutes(60) + seconds(150)));
  CHECK_FALSE(watch.alive(status, start + minutes(60) + seconds(151)));
  status.steps = 8;
  CHECK(watch.alive(status, start + minutes(64)));
  CHECK_FALSE(watch.alive(status, start + minutes(67)));
  // Ranks that are started again are a new beginning.
  status.state = EngineState::kRestarting;
  status.restarts = 1;
  CHECK(watch.alive(status, start + minutes(68)));
}

TEST_CASE("a load lives as long as it reads, and some time beyond") {
  ProgressWatch watch(seconds(1));
  const auto start = ProgressWatch::Clock::time_point{} + std::chrono::hours(1);
  EngineStatus status;
  status.state = EngineState::kLoading;
  for (int minute = 0; minute < 60; ++minute) {
    status.bytes_read += 1 << 20;
    CHECK(watch.alive(status, start + minutes(minute)));
  }
  CHECK(watch.alive(status, start + minutes(59) + ProgressWatch::kLoadSilence));
  CHECK_FALSE(watch.alive(status, start + minutes(60) + ProgressWatch::kLoadSilence));
}

}  // namespace
}  // namespace shoal
