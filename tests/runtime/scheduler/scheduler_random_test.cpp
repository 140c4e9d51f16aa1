// Random workloads against the invariants: every request ends exactly once, its tokens are those of
// a run alone, slices are contiguous and never cross the prompt's end, nothing leaks. Each with
// plans made one at a time, and again with plans that run ahead of what is applied, now and then or
// always.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>

#include "runtime/scheduler/scheduler.h"
#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

constexpr int32_t kVocab = 50;

struct Workload {
  uint64_t seed = 0;
  int ahead = 0;  // of ten plans, how many are made before the one before is applied
  int requests = 0;
  int loads_delay = 0;
  int clients = 1;
  SchedulerConfig config;
};

class Run {
 public:
  explicit Run(const Workload& w)
      : workload_(w), random_(w.seed), scheduler_(w.config), model_(w.config, kVocab) {
    // Beginnings that prompts share.
    for (int i = 0; i < 5; ++i) beginnings_.push_back(random_tokens(pick(1, max_prompt())));
  }

  void run() {
    int added = 0;
    int64_t steps = 0;
    model_.loads_delay = workload_.loads_delay;
    while (added < workload_.requests || scheduler_.has_work() || open_) {
      REQUIRE(++steps < 200000);
      while (added < workload_.requests && (pick(0, 2) == 0 || !scheduler_.has_work())) {
        add(static_cast<RequestId>(++added));
      }
      if (pick(0, 9) == 0) cancel_one();
      step();
    }
    REQUIRE(live_.empty());
    REQUIRE(ended_ == workload_.requests);
    const SchedulerStats stats = scheduler_.stats();
    REQUIRE(stats.pages_used == 0);
    REQUIRE(stats.running == 0);
    REQUIRE(stats.waiting == 0);
    preemptions = stats.preemptions;
    prefix_hits = stats.prefix_hits;
    tiers = stats.tiers;
  }

  FakeModel& model() { return model_; }

  TierStats tiers;
  int64_t preemptions = 0, prefix_hits = 0, dead_samples = 0, plans_ahead = 0;

 private:
  struct Open {  // a plan that has run and is not applied
    StepPlan plan;
    std::vector<int32_t> tokens;
  };
  struct Live {
    Request request;
    std::vector<int32_t> out;
    int32_t computed = -1;  // unknown: not run yet, or perhaps preempted
  };

  int32_t pick(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  int32_t max_len() const {
    return std::min(workload_.config.max_model_len,
                    workload_.config.num_pages * workload_.config.page_size);
  }
  int32_t max_prompt() const { return max_len() - 1; }
  std::vector<int32_t> random_tokens(int32_t n) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t& t : tokens) t = pick(0, kVocab - 1);
    return tokens;
  }

  void add(RequestId id) {
    Request r;
    r.id = id;
    r.priority = pick(0, 2);
    if (workload_.clients > 1) r.client = static_cast<uint64_t>(pick(0, pick(0, workload_.clients - 1)));
    r.tokens = random_tokens(pick(1, max_prompt()));
    if (pick(0, 1) == 0) {
      const auto& shared = beginnings_[static_cast<size_t>(pick(0, 4))];
      std::copy_n(shared.begin(), std::min(shared.size(), r.tokens.size()), r.tokens.begin());
    }
    r.prompt_len = pick(0, 3) == 0 ? pick(1, static_cast<int32_t>(r.tokens.size()))
                                   : static_cast<int32_t>(r.tokens.size());
    const int32_t emitted = static_cast<int32_t>(r.tokens.size()) - r.prompt_len;
    r.sampling.max_tokens = emitted + pick(1, 30);
    r.sampling.ignore_eos = pick(0, 1) == 0;
    if (pick(0, 3) == 0) r.sampling.stop_token_ids = {pick(0, kVocab - 1)};
    live_[id] = {r, std::vector<int32_t>(r.tokens.begin() + r.prompt_len, r.tokens.end())};
    scheduler_.add(std::move(r));
  }

  void cancel_one() {
    if (live_.empty()) return;
    auto it = live_.begin();
    std::advance(it, pick(0, static_cast<int32_t>(live_.size()) - 1));
    REQUIRE(scheduler_.cancel(it->first));
    live_.erase(it);
    ++ended_;
  }

  void step() {
    if (open_ && pick(1, 10) > workload_.ahead) apply();
    const bool is_ahead = open_.has_value();
    const int64_t preempted_before = scheduler_.stats().preemptions;
    std::optional<StepPlan> plan = scheduler_.plan();
    Open next;
    if (plan) model_.move_pages(*plan);
    const uint64_t ticket = scheduler_.loading();
    if (ticket != 0) {
      if (const int64_t pages = model_.loaded(ticket); pages >= 0) scheduler_.loaded(ticket, pages);
    }
    if (plan && plan->kind == StepKind::kPages) {
      REQUIRE(plan->slices.empty());
      if (scheduler_.stats().preemptions != preempted_before) {
        for (auto& [id, live] : live_) live.computed = -1;
      }
    } else if (plan) {
      plans_ahead += is_ahead;
      check(*plan, preempted_before);
      next = {*plan, model_.choose(*plan)};
    } else {
      REQUIRE((is_ahead || !scheduler_.has_work() || ticket != 0));
    }
    if (open_) apply();
    if (plan && plan->kind == StepKind::kRun) open_ = std::move(next);
    const SchedulerStats stats = scheduler_.stats();
    REQUIRE(stats.running + stats.waiting == static_cast<int64_t>(live_.size()));
    REQUIRE(stats.pages_used <= stats.pages_total);
  }

  void check(const StepPlan& plan, int64_t preempted_before) {
    if (scheduler_.stats().preemptions != preempted_before) {
      for (auto& [id, live] : live_) live.computed = -1;
    }
    for (const SequenceSlice& s : plan.slices) {
      Live& live = live_.at(s.request);
      const auto end = s.first_position + static_cast<int32_t>(s.tokens.size());
      if (live.computed >= 0) REQUIRE(s.first_position == live.computed);
      live.computed = end;
      const int32_t prompt_len = live.request.prompt_len;
      REQUIRE(s.absorbed == (s.first_position >= prompt_len));
      REQUIRE((s.absorbed || end <= prompt_len));
      std::vector<int32_t> all(live.request.tokens.begin(),
                               live.request.tokens.begin() + prompt_len);
      all.insert(all.end(), live.out.begin(), live.out.end());
      if (s.from_sample >= 0) {
        REQUIRE(open_);
        const auto& slices = open_->plan.slices;
        std::vector<RequestId> sampled;
        for (const SequenceSlice& before : slices) {
          if (before.sample) sampled.push_back(before.request);
        }
        REQUIRE(sampled.at(static_cast<size_t>(s.from_sample)) == s.request);
        REQUIRE(s.first_position == static_cast<int32_t>(all.size()));
        REQUIRE(s.tokens.size() == 1);
        REQUIRE(s.sample);
        continue;
      }
      REQUIRE(end <= static_cast<int32_t>(all.size()));
      REQUIRE(std::equal(s.tokens.begin(), s.tokens.end(), all.begin() + s.first_position));
      REQUIRE(s.sample == (end == static_cast<int32_t>(all.size())));
    }
  }

  void apply() {
    const Open open = std::move(*open_);
    open_.reset();
    std::vector<Scheduler::Sampled> sampled;
    for (int32_t token : open.tokens) sampled.push_back({token, std::nullopt});
    const std::vector<TokenEvent> events = scheduler_.apply(open.plan, sampled);
    dead_samples += static_cast<int64_t>(sampled.size() - events.size());
    for (const TokenEvent& e : events) {
      Live& live = live_.at(e.id);
      live.out.push_back(*e.token);
      if (e.finish_reason == FinishReason::kNone) continue;
      REQUIRE(live.out ==
              fake_serial(live.request, kVocab, max_len(), workload_.config.eos_token_ids));
      live_.erase(e.id);
      ++ended_;
    }
  }

  const Workload& workload_;
  std::mt19937_64 random_;
  Scheduler scheduler_;
  FakeModel model_;
  std::vector<std::vector<int32_t>> beginnings_;
  std::map<RequestId, Live> live_;
  std::optional<Open> open_;
  int ended_ = 0;
};

TEST_CASE("random workloads end as a run alone, with nothing leaked") {
  int64_t preemptions = 0, prefix_hits = 0, dead_samples = 0, plans_ahead = 0;
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    std::mt19937_64 random(seed * 77);
    const auto pick = [&](int32_t low, int32_t high) {
      return std::uniform_int_distribution<int32_t>(low, high)(random);
    };
    Workload w;
    w.seed = seed;
    w.requests = 100;
    w.ahead = std::vector{0, 10, 5}[seed % 3];
    w.config.max_num_seqs = pick(1, 12);
    w.config.max_num_batched_tokens = pick(1, 64);
    w.config.max_model_len = pick(8, 120);
    w.config.page_size = pick(1, 8);
    w.config.num_pages = pick(8, 60);
    w.config.num_pools = pick(1, 3);
    w.config.enable_prefix_caching = pick(0, 3) != 0;
    w.config.eos_token_ids = {3, 11};
    INFO("seed " << seed);
    Run run(w);
    run.run();
    preemptions += run.preemptions;
    prefix_hits += run.prefix_hits;
    dead_samples += run.dead_samples;
    plans_ahead += run.plans_ahead;
    REQUIRE((w.ahead > 0 || run.plans_ahead == 0));
  }
  // The workloads must reach what they are for.
  REQUIRE(preemptions > 100);
  REQUIRE(prefix_hits > 1000);
  REQUIRE(plans_ahead > 1000);
  REQUIRE(dead_samples > 100);
}

TEST_CASE("clients that take turns change nothing but the order") {
  int64_t preemptions = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    std::mt19937_64 random(seed * 55);
    const auto pick = [&](int32_t low, int32_t high) {
      return std::uniform_int_distribution<int32_t>(low, high)(random);
    };
    Workload w;
    w.seed = seed;
    w.requests = 100;
    w.clients = pick(2, 5);
    w.ahead = std::vector{0, 10, 5}[seed % 3];
    w.loads_delay = pick(0, 6);
    w.config.max_num_seqs = pick(1, 12);
    w.config.max_num_batched_tokens = pick(1, 64);
    w.config.max_model_len = pick(8, 120);
    w.config.page_size = pick(1, 8);
    w.config.num_pages = pick(8, 60);
    w.config.num_pools = pick(1, 3);
    w.config.enable_prefix_caching = pick(0, 3) != 0;
    w.config.tiers.host_pages = pick(0, 60);
    w.config.tiers.disk_pages =
        page_keys_supported() && w.config.tiers.host_pages > 0 ? pick(0, 80) : 0;
    INFO("seed " << seed);
    Run run(w);
    run.run();
    preemptions += run.preemptions;
  }
  REQUIRE(preemptions > 100);
}

TEST_CASE("with tiers below the pages the tokens are the same") {
  TierStats sum;
  int64_t preemptions = 0, files = 0;
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    std::mt19937_64 random(seed * 91);
    const auto pick = [&](int32_t low, int32_t high) {
      return std::uniform_int_distribution<int32_t>(low, high)(random);
    };
    Workload w;
    w.seed = seed;
    w.requests = 80;
    w.ahead = std::vector{0, 10, 5}[seed % 3];
    w.loads_delay = pick(0, 6);
    w.config.max_num_seqs = pick(1, 12);
    w.config.max_num_batched_tokens = pick(1, 64);
    w.config.max_model_len = pick(8, 120);
    w.config.page_size = pick(1, 8);
    w.config.num_pages = pick(8, 60);
    w.config.num_pools = pick(1, 3);
    w.config.enable_prefix_caching = pick(0, 3) != 0;
    w.config.eos_token_ids = {3, 11};
    TierConfig& tiers = w.config.tiers;
    tiers.host_pages = pick(1, 60);
    tiers.disk_pages = page_keys_supported() ? pick(0, 2) * pick(1, 80) : 0;
    tiers.copies_per_step = pick(1, 12);
    tiers.preemption = static_cast<PreemptionMode>(pick(0, 2));
    tiers.token_seconds = 1e-5 * pick(1, 40);
    INFO("seed " << seed);
    // A second life of the server, which finds the files of the first; some of them are gone.
    Run first(w);
    first.run();
    const auto kept = first.model().files;
    tiers.on_disk.resize(static_cast<size_t>(w.config.num_pools));
    for (auto file = kept->begin(); file != kept->end();) {
      tiers.on_disk[static_cast<size_t>(file->first.first)].push_back(file->first.second);
      file = pick(0, 9) == 0 ? kept->erase(file) : std::next(file);
    }
    Run second(w);
    second.model().files = kept;
    second.run();
    for (const Run* run : {&first, &second}) {
      preemptions += run->preemptions;
      sum += run->tiers;
      if (tiers.preemption == PreemptionMode::kRecompute) REQUIRE(run->tiers.swapped_out == 0);
      REQUIRE((tiers.disk_pages > 0 || run->tiers.saved + run->tiers.loaded == 0));
    }
    for (const auto& pool : tiers.on_disk) {
      files += static_cast<int64_t>(pool.size());
      REQUIRE(static_cast<int64_t>(pool.size()) <= tiers.disk_pages);
    }
  }
  // The workloads must reach what they are for.
  REQUIRE(preemptions > 100);
  REQUIRE(sum.swapped_out > 100);
  REQUIRE(sum.swapped_in > 100);
  if (!page_keys_supported()) return;
  REQUIRE(sum.spilled > 1000);
  REQUIRE(sum.restored > 1000);
  REQUIRE(sum.saved > 1000);
  REQUIRE(sum.loaded > 300);
  REQUIRE(files > 300);
}

TEST_CASE("thousands of requests over a pool that holds a few") {
  Workload w;
  w.seed = 5;
  w.requests = 3000;
  w.config.max_num_seqs = 8;
  w.config.max_num_batched_tokens = 32;
  w.config.max_model_len = 48;
  w.config.page_size = 4;
  w.config.num_pages = 24;
  w.config.eos_token_ids = {3};
  for (int ahead : {0, 10}) {
    w.ahead = ahead;
    Run run(w);
    run.run();
    REQUIRE(run.preemptions > 10);
  }
}

}  // namespace
}  // namespace shoal
