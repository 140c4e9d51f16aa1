// Preempted sequences in host memory, prompts in host memory and files: what plans say, step by
// step.
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
  config.max_model_len = 32;
  config.page_size = 4;
  config.num_pages = 8;
  config.tiers.host_pages = 8;
  return config;
}

const SequenceSlice* slice_of(const StepPlan& plan, RequestId id) {
  for (const SequenceSlice& s : plan.slices) {
    if (s.request == id) return &s;
  }
  return nullptr;
}

int64_t copies(const StepPlan& plan, bool to_host) {
  return std::ranges::count_if(plan.copies,
                               [&](const PageCopy& c) { return c.to_host == to_host; });
}

int64_t files(const StepPlan& plan, PageFile::Kind kind) {
  return std::ranges::count_if(plan.files, [&](const PageFile& f) { return f.kind == kind; });
}

StepPlan next(Scheduler& scheduler) {
  std::optional<StepPlan> plan = scheduler.plan();
  REQUIRE(plan);
  if (plan->kind == StepKind::kPages) return *plan;
  std::vector<Scheduler::Sampled> sampled(static_cast<size_t>(plan->num_samples()),
                                          {500, std::nullopt});
  scheduler.apply(*plan, sampled);
  return *plan;
}

// Two requests of which the second is preempted.
StepPlan preempting_plan(Scheduler& scheduler) {
  scheduler.add(make_request(1, 12, 18, 0));
  scheduler.add(make_request(2, 12, 18, 100));
  for (;;) {
    const StepPlan plan = next(scheduler);
    if (scheduler.stats().preemptions > 0) return plan;
    REQUIRE(plan.number < 50);
  }
}

TEST_CASE("a preempted sequence goes to slots and comes back, and nothing of it runs twice") {
  SchedulerConfig config = small_config();
  config.enable_prefix_caching = false;
  config.tiers.preemption = PreemptionMode::kSwap;
  Scheduler scheduler(config);
  const StepPlan out = preempting_plan(scheduler);
  CHECK(slice_of(out, 2) == nullptr);
  CHECK(copies(out, true) == 4);
  CHECK(copies(out, false) == 0);
  StepPlan plan = next(scheduler);
  while (slice_of(plan, 2) == nullptr) {
    CHECK(plan.copies.empty());
    plan = next(scheduler);
  }
  CHECK(slice_of(plan, 1) == nullptr);
  REQUIRE(plan.copies.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    CHECK_FALSE(plan.copies[i].to_host);
    CHECK(plan.copies[i].slot == out.copies[i].slot);
    CHECK(plan.copies[i].page == slice_of(plan, 2)->pages[i]);
  }
  CHECK(slice_of(plan, 2)->first_position >= 15);
  CHECK(slice_of(plan, 2)->absorbed);
  while (scheduler.has_work()) next(scheduler);
  const SchedulerStats stats = scheduler.stats();
  CHECK(stats.pages_used == 0);
  CHECK(stats.tiers.swapped_out == 4);
  CHECK(stats.tiers.swapped_in == 4);
}

TEST_CASE("what is faster by the rates told is done: swap or recompute") {
  struct Row {
    double page_copy_seconds, token_seconds;
    bool swaps;
  };
  // 15 or 16 tokens in 4 pages: 8 copies.
  for (const Row& row : {Row{1e-3, 1e-3, true}, Row{1e-3, 0.4e-3, false}, Row{3e-3, 1e-3, false}}) {
    Scheduler scheduler(small_config());
    scheduler.set_costs(row.page_copy_seconds, row.token_seconds);
    const StepPlan plan = preempting_plan(scheduler);
    CHECK((scheduler.stats().tiers.swapped_out > 0) == row.swaps);
  }
  // Without enough slots there is no choice.
  SchedulerConfig config = small_config();
  config.tiers.host_pages = 3;
  config.tiers.preemption = PreemptionMode::kSwap;
  config.enable_prefix_caching = false;
  Scheduler scheduler(config);
  CHECK(copies(preempting_plan(scheduler), true) == 0);
}

TEST_CASE("a cancelled request gives its slots back") {
  SchedulerConfig config = small_config();
  config.enable_prefix_caching = false;
  config.tiers.host_pages = 4;
  config.tiers.preemption = PreemptionMode::kSwap;
  Scheduler scheduler(config);
  for (int round = 0; round < 3; ++round) {
    scheduler.add(make_request(1, 12, 18, 0));
    scheduler.add(make_request(2, 12, 18, 100));
    while (scheduler.stats().tiers.swapped_out < 4 * (round + 1)) next(scheduler);
    CHECK(scheduler.cancel(2));
    CHECK(scheduler.cancel(1));
    CHECK_FALSE(scheduler.has_work());
  }
}

// A scheduler that finds the 4 pages of make_request(_, 17, _, 0) in files.
Scheduler with_files(int32_t copies_per_step = 64) {
  SchedulerConfig config = small_config();
  config.num_pages = 16;
  config.tiers.disk_pages = 8;
  config.tiers.copies_per_step = copies_per_step;
  config.tiers.on_disk = {page_keys("", make_request(1, 16, 1, 0).tokens, 4)};
  return Scheduler(config);
}

TEST_CASE(
    "a prompt in files waits for them while others run, and is restored as far as they came") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  Scheduler scheduler = with_files();
  scheduler.add(make_request(1, 17, 3, 0));
  scheduler.add(make_request(2, 6, 20, 300));
  scheduler.add(make_request(3, 17, 3, 0));  // waits for the same
  StepPlan plan = next(scheduler);
  CHECK(files(plan, PageFile::Kind::kLoad) == 4);
  CHECK(slice_of(plan, 1) == nullptr);
  CHECK(slice_of(plan, 2) != nullptr);
  const uint64_t ticket = scheduler.loading();
  REQUIRE(ticket == plan.files[0].ticket);
  for (int i = 0; i < 3; ++i) {
    plan = next(scheduler);
    CHECK(plan.slices.size() == 1);
    CHECK(slice_of(plan, 2) != nullptr);
    CHECK(files(plan, PageFile::Kind::kLoad) == 0);
  }
  scheduler.loaded(ticket, 3);
  CHECK(scheduler.loading() == 0);
  plan = next(scheduler);
  CHECK(files(plan, PageFile::Kind::kDrop) == 1);  // the one that some rank has not
  CHECK(copies(plan, false) == 3);
  REQUIRE(slice_of(plan, 1) != nullptr);
  CHECK(slice_of(plan, 1)->first_position == 12);
  CHECK(slice_of(plan, 2) != nullptr);
  plan = next(scheduler);
  CHECK(slice_of(plan, 3)->first_position == 16);  // from the prefix cache
  const SchedulerStats stats = scheduler.stats();
  CHECK(stats.tiers.loaded == 3);
  CHECK(stats.tiers.restored == 3);
  CHECK(stats.prefix_hits == 12 + 16);
}

TEST_CASE("a long prompt is restored in pieces, beside what runs") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  Scheduler scheduler = with_files(1);
  scheduler.add(make_request(2, 6, 20, 300));
  next(scheduler);
  scheduler.add(make_request(1, 17, 3, 0));
  next(scheduler);
  scheduler.loaded(scheduler.loading(), 4);
  for (int i = 0; i < 4; ++i) {
    const StepPlan plan = next(scheduler);
    CHECK(copies(plan, false) == 1);
    CHECK(slice_of(plan, 2) != nullptr);
    CHECK((slice_of(plan, 1) != nullptr) == (i == 3));
  }
}

TEST_CASE("a request that is cancelled while its pages are read leaves them to others") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  Scheduler scheduler = with_files();
  scheduler.add(make_request(1, 17, 3, 0));
  const StepPlan plan = next(scheduler);
  CHECK(plan.kind == StepKind::kPages);
  CHECK(scheduler.cancel(1));
  CHECK(scheduler.has_work());  // the answer is awaited
  CHECK_FALSE(scheduler.plan());
  scheduler.loaded(scheduler.loading(), 4);
  CHECK_FALSE(scheduler.has_work());
  scheduler.add(make_request(5, 17, 1, 0));
  const StepPlan restored = next(scheduler);
  CHECK(copies(restored, false) == 4);
  CHECK(slice_of(restored, 5)->first_position == 16);
}

TEST_CASE("a prompt's pages go to slots one plan after they are computed, and to files one later") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  SchedulerConfig config = small_config();
  config.num_pages = 16;
  config.tiers.disk_pages = 3;
  Scheduler scheduler(config);
  scheduler.add(make_request(1, 17, 8, 0));
  StepPlan plan = next(scheduler);
  CHECK(plan.copies.empty());
  plan = next(scheduler);
  CHECK(copies(plan, true) == 4);
  CHECK(plan.files.empty());
  plan = next(scheduler);
  CHECK(plan.copies.empty());
  CHECK(files(plan, PageFile::Kind::kSave) == 4);
  CHECK(files(plan, PageFile::Kind::kDrop) == 1);  // there is room for three
  // The same prompt again: nothing is known twice.
  scheduler.add(make_request(2, 17, 8, 0));
  for (int i = 0; i < 4; ++i) {
    plan = next(scheduler);
    CHECK(plan.copies.empty());
    CHECK(plan.files.empty());
  }
  // What the last step computes is kept, too: with plans that are no steps.
  scheduler.cancel(1);
  scheduler.cancel(2);
  scheduler.add(make_request(3, 17, 1, 400));
  next(scheduler);
  CHECK(scheduler.has_work());
  plan = next(scheduler);
  CHECK(plan.kind == StepKind::kPages);
  CHECK(copies(plan, true) == 4);
  plan = next(scheduler);
  CHECK(plan.kind == StepKind::kPages);
  CHECK(files(plan, PageFile::Kind::kSave) == 4);
  CHECK_FALSE(scheduler.has_work());
}

}  // namespace
}  // namespace shoal
