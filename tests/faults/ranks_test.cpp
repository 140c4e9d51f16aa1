// Tests 11 and 12: the end of the server under load, and ranks that die, hang or dawdle.
#include <catch2/catch.hpp>
#include <signal.h>

#include <chrono>
#include <thread>

#include "tests/faults/server.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using Stream = FaultClient::Stream;

constexpr int kTokens = 1000;  // half a second's, on a quiet machine

v1::CompleteRequest endless(int seed) { return greedy(some_ids(seed, 20), kTokens); }

std::vector<std::unique_ptr<Stream>> open_streams(FaultClient& client, int count) {
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < count; ++i) streams.push_back(client.open(endless(i)));
  v1::CompleteResponse first;
  for (const auto& stream : streams) REQUIRE(stream->read(&first));
  return streams;
}

TEST_CASE("11: SIGTERM under load lets running calls finish and takes no others") {
  FaultServer server;
  const auto client = server.connect(), other = server.connect();
  const std::vector<pid_t> ranks = server.rank_pids();
  REQUIRE(ranks.size() == 1);
  REQUIRE(other->health() == 1);
  auto streams = open_streams(*client, 16);
  server.process.send(SIGTERM);
  // Health says so before calls are refused, so that a gateway can act on it.
  CHECK(eventually([&] { return other->health() == 2; }, 10));
  CHECK(eventually([&] { return other->complete(endless(1), {.deadline_seconds = 1}).code == Code::kUnavailable; }, 10));
  for (const auto& stream : streams) {
    const CallResult result = stream->finish();
    INFO(result.message);
    CHECK(result.code == Code::kOk);
    CHECK(result.token_ids.size() == kTokens);
  }
  CHECK(server.process.wait_exit(kPatienceSeconds) == 0);
  CHECK(kill(ranks[0], 0) != 0);
}

TEST_CASE("11: a second SIGTERM, or the end of --drain-timeout, does not wait for running calls") {
  const bool second = GENERATE(true, false);
  FaultServer server({"--drain-timeout", second ? "600" : "0.2", "--max-num-seqs", "1"});
  const auto client = server.connect();
  const std::vector<pid_t> ranks = server.rank_pids();
  auto streams = std::vector<std::unique_ptr<Stream>>();
  for (int i = 0; i < 50; ++i) streams.push_back(client->open(endless(i)));
  REQUIRE(eventually([&] { return client->status().streams_open() == 50; }));
  server.process.send(SIGTERM);
  REQUIRE_FALSE(server.process.wait_line("Shutting down", kPatienceSeconds).empty());
  if (second) server.process.send(SIGTERM);
  int unavailable = 0;
  for (const auto& stream : streams) {
    const CallResult result = stream->finish();
    // Cancelled: the server's last word did not get through in the time that a fast end has for it.
    CHECK((result.code == Code::kUnavailable || result.code == Code::kOk || result.code == Code::kCancelled));
    unavailable += result.code == Code::kUnavailable;
  }
  CHECK(unavailable > 0);
  CHECK(server.process.wait_exit(kPatienceSeconds) == 0);
  for (const pid_t pid : ranks) CHECK(kill(pid, 0) != 0);
}

TEST_CASE("11: SIGTERM at any moment of the start ends the server with exit code 0 and leaves nobody behind") {
  // From before the socket to after the weights.
  for (const int ms : {30, 60, 100, 150, 250}) {
    ShoalProcess process({"serve", "--model", demo_model(), "--port", "0", "--tensor-parallel-size", "2"});
    REQUIRE_FALSE(process.wait_line("non-default args", kPatienceSeconds).empty());
    std::this_thread::sleep_for(std::chrono::milliseconds(ms));
    const std::vector<pid_t> children = descendants(process.pid());
    process.send(SIGTERM);
    const int code = process.wait_exit(kPatienceSeconds);
    INFO(process.output());
    CHECK(code == 0);
    for (const pid_t pid : children) CHECK(eventually([&] { return kill(pid, 0) != 0; }, 20));
  }
}

// Streams of one world beside a fault of one of its ranks.
void check_streams_survive(FaultServer& server, FaultClient& client, const std::vector<CallResult>& expected,
                           const std::function<void()>& fault, int restarts) {
  const int before = client.status().engine_restarts();
  auto streams = open_streams(client, static_cast<int>(expected.size()));
  fault();
  for (size_t i = 0; i < expected.size(); ++i) {
    const CallResult result = streams[i]->finish();
    INFO(result.message << "\n" << server.process.output());
    CHECK(result.code == Code::kOk);
    CHECK(result.token_ids == expected[i].token_ids);
  }
  CHECK(client.status().engine_restarts() == before + restarts);
  CHECK(client.health() == 1);
}

TEST_CASE("12: a rank that is killed, hangs or pauses: streams pause and go on token for token") {
  // Tensor parallel with experts over both ranks; and attention of each request on one rank.
  const bool dp = GENERATE(false, true);
  std::vector<std::string> flags = {"--tensor-parallel-size", "2", "--step-timeout", sanitized() ? "20" : "3"};
  if (dp) flags.insert(flags.end(), {"--enable-dp-attention", "--expert-exchange", "all-to-all"});
  FaultServer server(flags);
  const auto client = server.connect();
  REQUIRE(server.rank_pids().size() == 2);
  std::vector<CallResult> expected;
  for (int i = 0; i < 4; ++i) expected.push_back(client->complete(endless(i)));

  check_streams_survive(server, *client, expected, [&] {  // a pause is not a death
    const pid_t rank = server.rank_pids()[1];
    kill(rank, SIGSTOP);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    kill(rank, SIGCONT);
  }, 0);
  check_streams_survive(server, *client, expected, [&] { kill(server.rank_pids()[dp ? 0 : 1], SIGKILL); }, 1);
  check_streams_survive(server, *client, expected, [&] { kill(server.rank_pids()[dp ? 1 : 0], SIGSTOP); }, 1);
  CHECK_THAT(server.process.output(), Contains("have said nothing for"));
  Idle idle(server, *client);
  CHECK(client->complete(greedy({300}, 5)).code == Code::kOk);
  CHECK(idle.difference() == "");
  server.process.send(SIGTERM);
  CHECK(server.process.wait_exit(kPatienceSeconds) == 0);
}

TEST_CASE("12: ranks that die again and again: every call ends, the server says why and exits with 3") {
  FaultServer server;
  const auto client = server.connect();
  const auto stream = client->open(greedy(some_ids(1, 20), 2000));
  v1::CompleteResponse first;
  REQUIRE(stream->read(&first));
  std::thread killer([&] {
    // Each life as soon as it is there, until the server gives up.
    pid_t last = 0;
    while (kill(server.process.pid(), 0) == 0 && server.process.output().find("giving up") == std::string::npos) {
      const std::vector<pid_t> ranks = server.rank_pids();
      if (!ranks.empty() && ranks[0] != last) kill(last = ranks[0], SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  const CallResult result = stream->finish();
  killer.join();
  INFO(server.process.output());
  CHECK(result.code == Code::kUnavailable);
  CHECK(result.message.find('\n') == std::string::npos);
  CHECK(server.process.wait_exit(kPatienceSeconds) == 3);
  CHECK_THAT(server.process.wait_line("shoal: error: ", 1), Contains("restarts"));
}

}  // namespace
}  // namespace shoal
