// The tiers below the KV cache with real models: whatever is preempted, swapped, spilled, restored
// or read from files, requests get the tokens that they get with room for all, on the CPU with the
// same bits.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "runtime/engine/engine.h"
#include "runtime/engine/kv_tiers.h"
#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"
#include "tests/support/skip.h"
#ifdef SHOAL_CUDA_EMULATED
#include "tests/emulated_cuda/control.h"
#endif

namespace shoal {
namespace {

namespace fs = std::filesystem;

const std::string kModel = SHOAL_SOURCE_DIR "/tests/golden/data/v3";
constexpr int32_t kVocab = 128;

bool on_cpu() { return rank_runtime().on_cpu(); }
// Emulated GPUs are some hundred times slower.
int number(int cpu, int gpu) { return on_cpu() ? cpu : gpu; }

struct Workload {
  std::vector<Request> requests;
  std::map<RequestId, size_t> cancel_after;  // tokens
};

// Lengths, shared beginnings, n > 1, priorities, penalties, draws, stops and cancels.
Workload mixed(int count, int32_t vocab) {
  std::mt19937_64 random(11);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const auto tokens = [&](int n) {
    std::vector<int32_t> ids;
    for (; n > 0; --n) ids.push_back(pick(0, vocab - 1));
    return ids;
  };
  const std::vector<std::vector<int32_t>> beginnings = {tokens(40), tokens(23), tokens(9)};
  Workload w;
  while (static_cast<int>(w.requests.size()) < count) {
    Request r;
    if (pick(0, 1) == 0) r.tokens = beginnings[static_cast<size_t>(pick(0, 2))];
    for (const int32_t id : tokens(pick(1, 16))) r.tokens.push_back(id);
    r.prompt_len = static_cast<int32_t>(r.tokens.size());
    r.priority = pick(0, 2);
    SamplingParams& p = r.sampling;
    p.temperature = pick(0, 2) == 0 ? 0.0f : 1.0f;
    p.max_tokens = pick(1, number(70, 30));
    p.num_logprobs = pick(-1, 2);
    if (pick(0, 1) == 0) p.frequency_penalty = 1.0f;
    if (pick(0, 3) == 0) p.repetition_penalty = 1.2f;
    if (pick(0, 4) == 0) p.top_k = 20;
    if (pick(0, 3) == 0) p.stop_token_ids = {pick(0, vocab - 1), pick(0, vocab - 1)};
    for (int n = pick(0, 4) == 0 ? 3 : 1; n > 0; --n) {
      r.id = w.requests.size() + 1;
      p.seed = r.id;
      if (pick(0, 9) == 0) w.cancel_after[r.id] = static_cast<size_t>(pick(1, 5));
      w.requests.push_back(r);
    }
  }
  return w;
}

LoadOptions load_options(int64_t kv_tokens) {
  LoadOptions options;
  options.model_dir = kModel;
  options.dtype = "float32";
  options.page_size = 4;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 64;
  options.max_model_len = 128;
  options.kv_cache_tokens = kv_tokens;
  return options;
}

// While it lives emulated devices are late: what the host overwrites or reads too early shows.
struct LateDevice {
  LateDevice() {
#ifdef SHOAL_CUDA_EMULATED
    if (on_cpu()) return;
    rank_runtime().device().synchronize();
    emulated::set_stream_delays(7 + rank_runtime().rank(), 100);
#endif
  }
  ~LateDevice() {
#ifdef SHOAL_CUDA_EMULATED
    if (on_cpu()) return;
    rank_runtime().device().synchronize();
    emulated::reset();
#endif
  }
};

struct Outcome {
  std::map<RequestId, std::vector<TokenEvent>> events;
  EngineStats stats;
};

// One life of a server that answers `w`. On ranks but 0: nothing in `outcome`.
void serve(const Workload& w, const LoadOptions& load, const TierOptions& options,
           Outcome& outcome) {
  RankRuntime& rank = rank_runtime();
  auto directory = open_kv_checkpoint(options, rank);
  LoadOptions planned = load;
  planned.swap_bytes = swap_bytes(options, rank);
  const auto model = load_model(rank, planned);
  TierConfig tiers = attach_tiers(options, rank, *model, load.quantization, std::move(directory));
  // As planned, to the byte.
  CHECK(model->plan.ranks.front().swap ==
        static_cast<uint64_t>(tiers.host_pages * model->runner->kv_cache().layout().page_bytes()));
  if (rank.rank() != 0) return run_worker(rank.group(), *model->runner);
  EngineConfig config;
  config.vocab_size = static_cast<int32_t>(model->config.vocab_size);
  config.exchange = ExchangePolicy::kReplicated;
  config.scheduler.max_num_seqs = static_cast<int32_t>(load.max_num_seqs);
  config.scheduler.max_num_batched_tokens = static_cast<int32_t>(load.max_num_batched_tokens);
  config.scheduler.max_model_len = static_cast<int32_t>(model->max_model_len);
  config.scheduler.page_size = model->runner->page_size();
  config.scheduler.num_pages = model->runner->num_pages();
  config.scheduler.num_pools = load.dp_attention ? rank.size() : 1;
  config.scheduler.tiers = std::move(tiers);
  size_t ended = 0;
  Engine* self = nullptr;
  Engine engine(config, rank.group(), *model->runner, [&](std::vector<TokenEvent> events) {
    for (TokenEvent& event : events) {
      const RequestId id = event.id;
      auto& mine = outcome.events[id];
      ended += event.finish_reason != FinishReason::kNone;
      mine.push_back(std::move(event));
      const auto cancel = w.cancel_after.find(id);
      if (cancel != w.cancel_after.end() && cancel->second == mine.size()) self->cancel(id);
    }
    if (ended == w.requests.size()) self->stop();
  });
  self = &engine;
  for (const Request& request : w.requests) engine.submit(request);
  engine.run();
  outcome.stats = engine.stats();
  CHECK(outcome.stats.scheduler.pages_used == 0);
}

void check_same(const Workload& w, const Outcome& expected, const Outcome& got) {
  if (rank_runtime().rank() != 0) return;
  int different = 0;
  for (const Request& r : w.requests) {
    INFO("request " << r.id);
    const auto &x = expected.events.at(r.id), &y = got.events.at(r.id);
    const bool cancelled = w.cancel_after.contains(r.id);
    CHECK(y.back().finish_reason != FinishReason::kNone);
    if (!cancelled) {
      CHECK(x.size() == y.size());
      CHECK(x.back().finish_reason == y.back().finish_reason);
    }
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!x[i].token || !y[i].token) break;  // where a cancel came in
      if (x[i].token != y[i].token) {
        ++different;
        break;
      }
      if (!x[i].logprobs || !y[i].logprobs) continue;
      if (on_cpu()) {
        CHECK(x[i].logprobs->logprob == y[i].logprobs->logprob);
        CHECK(x[i].logprobs->top == y[i].logprobs->top);
      } else {
        CHECK(std::fabs(x[i].logprobs->logprob - y[i].logprobs->logprob) < 1e-3);
      }
    }
  }
  CHECK(different == 0);
}

// A directory of this test, the same on all ranks.
struct Directory {
  Directory() {
    std::vector<std::byte> name;
    if (rank_runtime().rank() == 0) {
      const std::string text =
          (fs::temp_directory_path() / fmt::format("shoal-tiers-{}", getpid())).string();
      const auto bytes = std::as_bytes(std::span(text));
      name.assign(bytes.begin(), bytes.end());
    }
    if (rank_runtime().size() > 1) rank_runtime().group().broadcast(name);
    path.assign(reinterpret_cast<const char*>(name.data()), name.size());
  }
  ~Directory() {
    rank_runtime().group().barrier();
    if (rank_runtime().rank() == 0) fs::remove_all(path);
  }
  std::vector<fs::path> files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.path().extension() == ".kv") files.push_back(entry.path());
    }
    return files;
  }
  std::string path;
};

TEST_CASE("with a KV cache of a few hundred tokens all requests get the tokens of a large one") {
  const Workload w = mixed(number(200, 12), kVocab);
  Outcome large;
  serve(w, load_options(16 * 128), {.swap_space = "0"}, large);
  if (rank_runtime().rank() == 0) CHECK(large.stats.scheduler.preemptions == 0);
  struct Row {
    const char *swap_space, *mode;
  };
  std::vector<Row> rows = {{"64MiB", "swap"}, {"64MiB", "auto"}};
  if (on_cpu())
    rows.insert(rows.end(), {{"0", "auto"}, {"64MiB", "recompute"}, {"100KiB", "swap"}});
  for (const Row& row : rows) {
    INFO("--swap-space " << row.swap_space << " --preemption-mode " << row.mode);
    Outcome small;
    const LateDevice late;
    serve(w, load_options(number(240, 160)),
          {.swap_space = row.swap_space, .preemption_mode = row.mode}, small);
    check_same(w, large, small);
    if (rank_runtime().rank() != 0) continue;
    const SchedulerStats& stats = small.stats.scheduler;
    CHECK(stats.preemptions > number(10, 0));
    const bool swaps = std::string(row.mode) == "swap";
    if (swaps) CHECK(stats.tiers.swapped_in > number(10, 0));
    if (swaps || stats.tiers.swapped_out > 0) CHECK(std::string(row.swap_space) != "0");
    if (std::string(row.mode) == "recompute") CHECK(stats.tiers.swapped_out == 0);
  }
}

// Prompts that share a long beginning, `lives` times: each comes when the one before has ended.
Workload shared_prompts(int seed, int32_t length) {
  std::mt19937_64 random(5);
  Workload w;
  Request r;
  for (int32_t i = 0; i < length; ++i) r.tokens.push_back(static_cast<int32_t>(random() % kVocab));
  r.id = static_cast<RequestId>(seed);
  r.tokens.push_back(seed);
  r.prompt_len = static_cast<int32_t>(r.tokens.size());
  r.sampling.max_tokens = 8;
  r.sampling.temperature = 0;
  r.sampling.num_logprobs = 2;
  w.requests = {r};
  return w;
}

TEST_CASE("prompts come back from host memory when the device has given their pages away") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  // One request after the other, by priority: the first prompt, others that take its pages, it
  // again.
  Workload w = shared_prompts(1, 70);
  std::mt19937_64 random(3);
  for (int i = 0; i < 5; ++i) {
    Request other = w.requests[0];
    other.id = static_cast<RequestId>(10 + i);
    other.priority = 1 + i;
    for (int32_t& id : other.tokens) id = static_cast<int32_t>(random() % kVocab);
    w.requests.push_back(other);
  }
  Request again = w.requests[0];
  again.id = 99;
  again.priority = 50;
  w.requests.push_back(again);
  LoadOptions load = load_options(128);
  load.max_num_seqs = 1;
  Outcome none, tiered;
  serve(w, load, {.swap_space = "0"}, none);
  serve(w, load, {.swap_space = "64MiB"}, tiered);
  check_same(w, none, tiered);
  if (rank_runtime().rank() != 0) return;
  CHECK(none.events.at(99).front().cached_tokens == 0);
  CHECK(tiered.events.at(99).front().cached_tokens == 68);
  CHECK(tiered.stats.scheduler.tiers.restored == 17);
  CHECK(tiered.stats.prompt_tokens == none.stats.prompt_tokens - 68);
}

TEST_CASE("prompts come back from files after a restart, with the same bits") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Directory directory;
  const TierOptions tiers = {
      .swap_space = "64MiB", .kv_checkpoint_dir = directory.path, .kv_checkpoint_size = "16MiB"};
  const LoadOptions load = load_options(4 * 128);
  const Workload w = shared_prompts(2, 80);
  const int ranks = rank_runtime().size();
  Outcome plain, first, second, third, damaged;
  serve(w, load, {.swap_space = "0"}, plain);
  serve(shared_prompts(1, 80), load, tiers, first);
  {
    const LateDevice late;
    serve(w, load, tiers, second);
  }
  check_same(w, plain, second);
  const bool rank_zero = rank_runtime().rank() == 0;
  if (rank_zero) {
    CHECK(first.stats.scheduler.tiers.saved == 20);
    CHECK(second.stats.scheduler.tiers.loaded == 20);
    CHECK(second.stats.scheduler.tiers.restored == 20);
    CHECK(second.events.at(2).front().cached_tokens == 80);
    CHECK(second.stats.prompt_tokens == 1);
    CHECK(directory.files().size() == static_cast<size_t>(20 * ranks));
    // One page of one rank is damaged: all ranks compute from there on.
    const auto files = directory.files();
    std::fstream file(files.back(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(-1, std::ios::end);
    file.put('x');
  }
  rank_runtime().group().barrier();
  serve(w, load, tiers, damaged);
  check_same(w, plain, damaged);
  if (rank_zero) {
    const int32_t cached = damaged.events.at(2).front().cached_tokens;
    CHECK(cached < 80);
    CHECK(cached == 4 * damaged.stats.scheduler.tiers.loaded);
    CHECK(damaged.stats.prompt_tokens == 81 - cached);
  }
  // Pages of another layout are not found.
  LoadOptions other = load;
  other.page_size = 8;
  serve(w, other, tiers, third);
  check_same(w, plain, third);
  if (rank_zero) CHECK(third.stats.scheduler.tiers.loaded == 0);
}

TEST_CASE("with requests split over the ranks each has tiers of its own") {
  if (rank_runtime().size() == 1) return;
  const Directory directory;
  LoadOptions load = load_options(number(240, 160));
  load.dp_attention = true;
  const Workload w = mixed(number(120, 10), kVocab);
  LoadOptions large = load;
  large.kv_cache_tokens = 16 * 128;
  Outcome expected, swapped;
  serve(w, large, {.swap_space = "0"}, expected);
  TierOptions tiers = {.swap_space = "64MiB", .preemption_mode = "swap"};
  if (page_keys_supported()) tiers.kv_checkpoint_dir = directory.path;
  for (int life = 0; life < 2; ++life) {
    swapped = {};
    serve(w, load, tiers, swapped);
    check_same(w, expected, swapped);
  }
  if (rank_runtime().rank() != 0 || !on_cpu()) return;
  CHECK(swapped.stats.scheduler.tiers.swapped_in > 0);
  if (page_keys_supported()) CHECK(swapped.stats.scheduler.tiers.loaded > 0);
}

TEST_CASE("sizes that hold no page or more than the machine has are refused") {
  if (rank_runtime().size() > 1) return;
  RankRuntime& rank = rank_runtime();
  const auto refused = [&](const TierOptions& options) {
    try {
      auto directory = open_kv_checkpoint(options, rank);
      LoadOptions load = load_options(128);
      load.swap_bytes = swap_bytes(options, rank);
      const auto model = load_model(rank, load);
      attach_tiers(options, rank, *model, "none", std::move(directory));
    } catch (const InvalidInput& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Directory directory;
  using Catch::Matchers::Contains;
  CHECK_THAT(refused({.swap_space = "4"}), Contains("--swap-space 4") && Contains("page"));
  CHECK_THAT(refused({.swap_space = "-1GiB"}), Contains("--swap-space -1GiB"));
  CHECK_THAT(refused({.swap_space = "900TiB"}), Contains("--swap-space 900TiB"));
  CHECK_THAT(refused({.swap_space = "many"}), Contains("--swap-space many"));
  CHECK_THAT(refused({.preemption_mode = "drop"}), Contains("--preemption-mode drop"));
  if (!page_keys_supported()) return;
  CHECK_THAT(refused({.swap_space = "0", .kv_checkpoint_dir = directory.path}),
             Contains("--swap-space 0"));
  CHECK_THAT(refused({.kv_checkpoint_dir = directory.path, .kv_checkpoint_size = "1KiB"}),
             Contains("--kv-checkpoint-size 1KiB"));
  CHECK_THAT(refused({.kv_checkpoint_dir = directory.path, .kv_checkpoint_size = "0"}),
             Contains("--kv-checkpoint-size 0"));
  CHECK_THAT(refused({.kv_checkpoint_dir = directory.path, .enable_prefix_caching = false}),
             Contains("prefix"));
  CHECK(refused({.kv_checkpoint_dir = directory.path}).empty());
}

TEST_CASE("a fingerprint changes with the weights and with the config") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  if (rank_runtime().size() > 1) return;
  const Directory directory;
  fs::copy(kModel, directory.path, fs::copy_options::recursive);
  const auto sum = [&] { return model_fingerprint(*Checkpoint::open(directory.path)); };
  const Sha256 original = model_fingerprint(*Checkpoint::open(kModel));
  CHECK(sum() == original);
  fs::path weights;
  for (const auto& entry : fs::directory_iterator(directory.path)) {
    if (entry.path().extension() == ".safetensors") weights = entry.path();
  }
  fs::permissions(weights, fs::perms::owner_write, fs::perm_options::add);
  {
    std::fstream file(weights, std::ios::binary | std::ios::in | std::ios::out);
    const auto size = static_cast<int64_t>(fs::file_size(weights));
    file.seekp(size / 2);
    for (int i = 0; i < size / 8; ++i) file.put('\x11');  // a matrix
  }
  const Sha256 tuned = sum();
  CHECK(tuned != original);
  std::ofstream(directory.path + "/config.json", std::ios::app) << "\n";
  CHECK(sum() != tuned);
}

}  // namespace
}  // namespace shoal
