// Prompts of one salt are invisible to others: in the device's prefix cache, in host memory, in files, and
// in who waits for whom.
#include <catch2/catch.hpp>

#include "runtime/scheduler/scheduler.h"
#include "tests/runtime/scheduler/make_request.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

SchedulerConfig small_config() {
  SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 32;
  config.max_model_len = 64;
  config.page_size = 4;
  config.num_pages = 16;
  return config;
}

// 17 tokens, the same for every id: 4 full pages that another request can find.
Request salted(RequestId id, const std::string& salt, int32_t max_tokens = 1) {
  Request request = make_request(id, 17, max_tokens, 0);
  request.cache_salt = salt;
  return request;
}

StepPlan next(Scheduler& scheduler) {
  std::optional<StepPlan> plan = scheduler.plan();
  REQUIRE(plan);
  if (plan->kind == StepKind::kPages) return *plan;
  scheduler.apply(*plan, std::vector<Scheduler::Sampled>(static_cast<size_t>(plan->num_samples()),
                                                         {500, std::nullopt}));
  return *plan;
}

// Prompt tokens that the request does not run, because their KV is known.
int32_t known_of(Scheduler& scheduler, Request request) {
  const RequestId id = request.id;
  const int64_t hits = scheduler.stats().prefix_hits;
  scheduler.add(std::move(request));
  std::optional<int32_t> first;
  while (scheduler.has_work()) {
    for (const SequenceSlice& slice : next(scheduler).slices) {
      if (slice.request == id && !first) first = slice.first_position;
    }
  }
  REQUIRE(first);
  CHECK(scheduler.stats().prefix_hits - hits == *first);
  return *first;
}

TEST_CASE("a prompt is found in the device's prefix cache under its own salt only", "[salt]") {
  Scheduler scheduler(small_config());
  CHECK(known_of(scheduler, salted(1, "a")) == 0);
  CHECK(known_of(scheduler, salted(2, "b")) == 0);
  CHECK(known_of(scheduler, salted(3, "")) == 0);
  CHECK(known_of(scheduler, salted(4, "a")) == 16);
  CHECK(known_of(scheduler, salted(5, "b")) == 16);
  CHECK(known_of(scheduler, salted(6, "")) == 16);
  CHECK(known_of(scheduler, salted(7, "ab")) == 0);
}

TEST_CASE("nobody waits for a prompt that another salt computes", "[salt]") {
  SchedulerConfig config = small_config();
  config.max_num_batched_tokens = 20;  // the first prompt and some of the next
  Scheduler scheduler(config);
  scheduler.add(salted(1, "a"));
  scheduler.add(salted(2, "b"));
  scheduler.add(salted(3, "a"));
  const StepPlan plan = next(scheduler);
  REQUIRE(plan.slices.size() == 2);
  CHECK(plan.slices[1].request == 2);
}

TEST_CASE("a prompt is found in host memory under its own salt only", "[salt]") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  SchedulerConfig config = small_config();
  config.tiers.host_pages = 64;
  Scheduler scheduler(config);
  known_of(scheduler, salted(1, "a"));
  Request flood = make_request(2, 61, 1, 1000);
  known_of(scheduler, std::move(flood));
  CHECK(known_of(scheduler, salted(3, "b")) == 0);
  CHECK(scheduler.stats().tiers.restored == 0);
  flood = make_request(4, 61, 1, 2000);
  known_of(scheduler, std::move(flood));
  CHECK(known_of(scheduler, salted(5, "a")) == 16);
  CHECK(scheduler.stats().tiers.restored == 4);
}

TEST_CASE("a prompt is found in files under its own salt only", "[salt]") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  SchedulerConfig config = small_config();
  config.tiers.host_pages = 16;
  config.tiers.disk_pages = 16;
  config.tiers.on_disk = {page_keys("a", salted(1, "a").tokens, config.page_size)};
  for (const std::string salt : {"a", "b", ""}) {
    Scheduler scheduler(config);
    scheduler.add(salted(1, salt));
    const StepPlan plan = next(scheduler);
    const auto loads = std::ranges::count_if(
        plan.files, [](const PageFile& f) { return f.kind == PageFile::Kind::kLoad; });
    CHECK(loads == (salt == "a" ? 4 : 0));
  }
}

}  // namespace
}  // namespace shoal
