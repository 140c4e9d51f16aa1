// Test 20, and the load that the server has to hold: many streams of every kind at once, and nothing lost.
//   SHOAL_SOAK_SECONDS=3600 faults_soak_test "20*"     an hour instead of some seconds
//   SHOAL_LOAD_CALLS=10000 SHOAL_LOAD_STREAMS=500 faults_soak_test "load*"
#include <catch2/catch.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "tests/faults/server.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::atoi(value) : otherwise;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// What became of calls, as their clients saw it.
struct Tally {
  std::map<Code, int> codes;
  int sent = 0, wrong = 0;  // wrong: not one end of the right kind

  void add(const FaultClient::LoadCall& call, const CallResult& result) {
    ++sent;
    ++codes[result.code];
    const auto& sampling = call.request.sampling();
    const int n = sampling.has_n() ? sampling.n() : 1;
    const bool bad = sampling.top_p() > 1;
    const bool cancels = call.cancel_after_messages >= 0 || call.cancel_after_seconds >= 0;
    const bool hurried = call.deadline_seconds < 60;
    switch (result.code) {
      case Code::kOk:
        wrong += !result.has_usage || std::ssize(result.finish_reasons) != n ||
                 result.usage.completion_tokens() != n * sampling.max_tokens() || bad;
        break;
      case Code::kCancelled:
        wrong += !cancels;
        break;
      case Code::kDeadlineExceeded:
        wrong += !hurried;
        break;
      case Code::kInvalidArgument:
        wrong += !bad;
        break;
      default:
        ++wrong;
        UNSCOPED_INFO("code " << static_cast<int>(result.code) << ": " << result.message);
    }
  }
};

FaultClient::LoadCall random_call(std::minstd_rand& random) {
  const auto up_to = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  // A third of the prompts begin alike.
  std::vector<int32_t> prompt = some_ids(up_to(1'000'000), 1 + up_to(150));
  if (up_to(3) == 0) {
    std::vector<int32_t> shared = some_ids(up_to(4), 100);
    shared.insert(shared.end(), prompt.begin(), prompt.end());
    prompt = std::move(shared);
  }
  FaultClient::LoadCall call{.request = greedy(prompt, 1 + up_to(60))};
  v1::SamplingParams& sampling = *call.request.mutable_sampling();
  sampling.set_temperature(static_cast<float>(up_to(3)) / 2);
  if (up_to(5) == 0) sampling.set_n(1 + up_to(3));
  if (up_to(10) == 0) sampling.set_logprobs(up_to(20));
  if (up_to(4) == 0) call.request.set_stream(false);
  call.request.set_priority(up_to(5) - 2);
  switch (up_to(10)) {
    case 0:
      call.cancel_after_messages = up_to(5);
      break;
    case 1:
      call.cancel_after_seconds = up_to(1000) / 1e3;
      break;
    case 2:
      call.deadline_seconds = up_to(500) / 1e3;
      break;
    case 3:
      sampling.set_top_p(2);
      break;
    case 4:
      call.read_pause_ms = up_to(30);
      break;
  }
  return call;
}

// The server's books against the clients'. What a client cancels at once, or sends too late, the server may never see,
// and a race between the two is decided differently on both sides; but no call is counted twice.
void check_books(const Tally& tally, const Idle::Ends& ends, uint64_t others_ok) {
  const auto seen = [&](Code code) {
    const auto it = tally.codes.find(code);
    return it == tally.codes.end() ? uint64_t{0} : static_cast<uint64_t>(it->second);
  };
  const uint64_t unsure = seen(Code::kCancelled) + seen(Code::kDeadlineExceeded);
  const auto sent = static_cast<uint64_t>(tally.sent) + others_ok;
  CHECK(tally.wrong == 0);
  CHECK(ends.sum() <= sent);
  CHECK(ends.sum() + unsure >= sent);
  CHECK(ends.ok >= seen(Code::kOk) + others_ok);
  CHECK(ends.ok <= seen(Code::kOk) + others_ok + unsure);
  CHECK(ends.rejected >= seen(Code::kInvalidArgument));
  CHECK(ends.failed == 0);
}

TEST_CASE("load: hundreds of streams at once with cancels and deadlines, and nothing lost") {
  const int calls = setting("SHOAL_LOAD_CALLS", 600), streams = setting("SHOAL_LOAD_STREAMS", 200);
  const FaultServer server({"--max-queue", "4096"});
  const auto client = server.connect();
  std::minstd_rand random(17);
  // What grows once (pools of threads, arenas, the prefix cache) has grown before the picture is taken.
  client->load(2 * streams, streams, [&](int) { return random_call(random); }, [](int, const auto&, const auto&) {});
  Neighbour neighbour(server, 800);
  Idle idle(server, *client);
  neighbour.start();
  Tally tally;
  int most = 0;
  const auto begin = Clock::now();
  client->load(
      calls, streams, [&](int) { return random_call(random); },
      [&](int i, const FaultClient::LoadCall& call, const CallResult& result) {
        tally.add(call, result);
        if (i % 200 == 0) most = std::max(most, static_cast<int>(idle.status().streams_open()));
      });
  WARN(fmt::format("{} calls, {} at a time, in {:.1f} s; {} streams seen open at once: {} ok, {} cancelled, {} too "
                   "late, {} refused",
                   calls, streams, seconds_since(begin), most, tally.codes[Code::kOk], tally.codes[Code::kCancelled],
                   tally.codes[Code::kDeadlineExceeded], tally.codes[Code::kInvalidArgument]));
  CHECK(neighbour.difference() == "");
  CHECK(idle.difference() == "");
  check_books(tally, idle.ends(), 1);
}

TEST_CASE("20: a soak of calls of every kind ends where it began") {
  const int seconds = setting("SHOAL_SOAK_SECONDS", 12);
  const FaultServer server({"--max-queue", "4096", "--kv-cache-tokens", "8192"});  // pages run out now and then
  const auto client = server.connect();
  std::minstd_rand random(20);
  const auto round = [&](int calls, Tally* tally) {
    client->load(
        calls, 64, [&](int) { return random_call(random); },
        [&](int, const FaultClient::LoadCall& call, const CallResult& result) { tally->add(call, result); });
  };
  Tally warm_up;
  round(400, &warm_up);
  CHECK(warm_up.wrong == 0);
  Idle idle(server, *client);
  const Vitals first = vitals(server.process.pid());
  Vitals middle{};
  Tally tally;
  uint64_t neighbours = 0;
  const auto begin = Clock::now();
  do {
    Neighbour neighbour(server, 400, 0.7);
    neighbour.start();
    round(200, &tally);
    CHECK(neighbour.difference() == "");
    neighbours += 2;
    if (middle.rss == 0 && seconds_since(begin) > seconds / 2.0) middle = vitals(server.process.pid());
  } while (seconds_since(begin) < seconds);
  CHECK(idle.difference() == "");
  check_books(tally, idle.ends(), neighbours);
  const Vitals last = vitals(server.process.pid());
  const v1::GetStatusResponse status = idle.status();
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  WARN(fmt::format("{:.0f} s, {} calls: {} ok, {} cancelled, {} too late, {} refused; {} preemptions, prefix hits {} "
                   "of {}; front end {:.1f} MiB, {:.1f} in the middle, {:.1f} at the end, fds {} and {}, threads {} "
                   "and {}",
                   seconds_since(begin), tally.sent, tally.codes[Code::kOk], tally.codes[Code::kCancelled],
                   tally.codes[Code::kDeadlineExceeded], tally.codes[Code::kInvalidArgument], status.preemptions(),
                   status.prefix_hits(), status.prefix_queries(), mib(first.rss), mib(middle.rss), mib(last.rss),
                   first.fds, last.fds, first.threads, last.threads));
  if (!sanitized()) CHECK(last.rss < middle.rss + (int64_t{24} << 20));
}

}  // namespace
}  // namespace shoal
