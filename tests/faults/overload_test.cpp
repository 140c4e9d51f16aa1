// Tests 9 and 10: more calls than places, more tokens than pages.
#include <catch2/catch.hpp>

#include <thread>

#include "tests/faults/server.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using Stream = FaultClient::Stream;

TEST_CASE("9: a burst of ten times the queue: the surplus is refused at once with a hint, the rest finishes") {
  const FaultServer server({"--max-queue", "32", "--max-num-seqs", "4"});
  const auto client = server.connect();
  Neighbour neighbour(server, 1500);
  Idle idle(server, *client);
  neighbour.start();
  std::map<Code, int> seen;
  double slowest_refusal = 0;
  client->load(
      320, 320, [](int i) { return FaultClient::LoadCall{.request = greedy(some_ids(i, 30), 60)}; },
      [&](int, const FaultClient::LoadCall&, const CallResult& result) {
        ++seen[result.code];
        if (result.code == Code::kOk) {
          CHECK(result.token_ids.size() == 60);
          return;
        }
        slowest_refusal = std::max(slowest_refusal, result.seconds);
        CHECK(result.code == Code::kResourceExhausted);
        CHECK(result.trailers.count("grpc-retry-pushback-ms") == 1);
        CHECK_THAT(result.message, Contains("--max-queue"));
      });
  WARN("slowest refusal in the burst: " << 1e3 * slowest_refusal << " ms");
  CHECK(seen[Code::kOk] >= 31);  // and the neighbour
  CHECK(seen[Code::kOk] + seen[Code::kResourceExhausted] == 320);
  CHECK(neighbour.difference() == "");
  CHECK(idle.difference() == "");
  CHECK(idle.ends().ok == static_cast<uint64_t>(seen[Code::kOk] + 1));
  CHECK(idle.ends().rejected == static_cast<uint64_t>(seen[Code::kResourceExhausted]));
  // One call that asks for more places than there can ever be.
  v1::CompleteRequest wide = greedy({300}, 2);
  wide.mutable_sampling()->set_n(33);
  CHECK(client->complete(wide).code == Code::kInvalidArgument);
  CHECK(idle.difference() == "");
}

TEST_CASE("9: places are given by priority, then in order of arrival") {
  const FaultServer server({"--max-num-seqs", "1"});
  const auto client = server.connect();
  const auto first = client->open(greedy(some_ids(1, 20), 1900));
  v1::CompleteResponse response;
  REQUIRE(first->read(&response));
  const std::vector<int> priorities = {0, 5, 0, -5, 0, -5};
  const std::vector<int> expected = {3, 5, 0, 2, 4, 1};
  std::mutex mutex;
  std::vector<int> order;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < priorities.size(); ++i) {
    threads.emplace_back([&, i] {
      v1::CompleteRequest request = greedy(some_ids(static_cast<int>(i), 20), 40);
      request.set_priority(priorities[i]);
      const CallResult result = client->complete(request);
      const std::lock_guard lock(mutex);
      CHECK(result.code == Code::kOk);
      order.push_back(static_cast<int>(i));
    });
    REQUIRE(eventually([&] { return client->status().streams_open() == static_cast<int64_t>(i) + 2; }, 10));
  }
  first->cancel();
  for (std::thread& thread : threads) thread.join();
  CHECK(order == expected);
}

TEST_CASE("10: more tokens than the KV cache holds: everything finishes, with the tokens of a run alone") {
  const FaultServer server({"--kv-cache-tokens", "1024", "--max-num-seqs", "16", "--max-model-len", "1024", "--max-num-batched-tokens", "128"});
  const auto client = server.connect();
  constexpr int kCalls = 12;
  const auto request = [](int i) { return greedy(some_ids(i, 50 + 20 * i), 150 + 10 * i); };
  std::vector<CallResult> alone;
  for (int i = 0; i < kCalls; ++i) alone.push_back(client->complete(request(i)));
  Idle idle(server, *client);
  int same = 0;
  client->load(
      kCalls, kCalls, [&](int i) { return FaultClient::LoadCall{.request = request(i)}; },
      [&](int i, const FaultClient::LoadCall&, const CallResult& result) {
        INFO(result.message);
        CHECK(result.code == Code::kOk);
        same += result.token_ids == alone[static_cast<size_t>(i)].token_ids;
      });
  CHECK(same == kCalls);
  CHECK(idle.difference() == "");
  CHECK(client->status().preemptions() > 0);
}

}  // namespace
}  // namespace shoal
