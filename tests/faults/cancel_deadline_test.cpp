// Tests 5 and 6: calls that are cancelled or run out of time, at every point of their life.
#include <catch2/catch.hpp>

#include <chrono>
#include <map>
#include <random>
#include <thread>

#include "tests/faults/raw_connection.h"
#include "tests/faults/server.h"

namespace shoal {
namespace {

using Stream = FaultClient::Stream;
constexpr char kComplete[] = "/shoal.v1.Inference/Complete";

// Few sequences and small steps, so that calls wait and prompts take many steps.
const FaultServer& server() {
  static const FaultServer server({"--max-num-seqs", "4", "--max-num-batched-tokens", "64",
                                   "--no-enable-prefix-caching"});
  return server;
}

v1::CompleteRequest endless() { return greedy(some_ids(3, 20), 2000); }

// Fills all places, one of them with a neighbour.
std::vector<std::unique_ptr<Stream>> fill(FaultClient& client, int places) {
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < places; ++i) {
    streams.push_back(client.open(endless()));
    v1::CompleteResponse first;
    REQUIRE(streams.back()->read(&first));
  }
  return streams;
}

TEST_CASE("5: a call cancelled at any point is gone, and nobody beside it notices") {
  const auto client = server().connect();
  Neighbour neighbour(server(), 600);
  Idle idle(server(), *client);
  neighbour.start();
  uint64_t ok = 0;
  v1::CompleteResponse response;

  SECTION("before it is dispatched") {
    for (int i = 0; i < 50; ++i) {
      const auto stream = client->open(endless());
      stream->cancel();
      CHECK(stream->finish().code == Code::kCancelled);
    }
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
    CHECK(idle.ends().sum() <= 51);  // the server has not seen all of them
    ok = 1;
  }
  SECTION("while it waits for a place") {
    auto places = fill(*client, 3);
    std::vector<std::unique_ptr<Stream>> waiting;
    for (int i = 0; i < 20; ++i) waiting.push_back(client->open(endless()));
    CHECK(eventually([&] { return client->status().streams_open() == 24; }));
    for (const auto& stream : waiting) stream->cancel();
    for (const auto& stream : waiting) CHECK(stream->finish().code == Code::kCancelled);
    CHECK(eventually([&] { return client->status().streams_open() <= 4; }));
    places.clear();
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
    CHECK(idle.ends().cancelled == 23);
    ok = 1;
  }
  SECTION("while its prompt is computed") {
    for (int i = 0; i < 8; ++i) {
      const auto stream = client->open(greedy(some_ids(i, 1900), 100));
      // 30 steps, of some milliseconds each. (The engine's own numbers come once a second: too late.)
      std::this_thread::sleep_for(std::chrono::milliseconds(5 * i));
      stream->cancel();
      CHECK(stream->finish().code == Code::kCancelled);
    }
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
    CHECK(idle.ends().cancelled <= 8);  // the first may never have reached the server
    ok = 1;
  }
  SECTION("while it streams") {
    for (int i = 0; i < 8; ++i) {
      const auto stream = client->open(endless());
      for (int m = 0; m <= i; ++m) REQUIRE(stream->read(&response));
      stream->cancel();
      CHECK(stream->finish().code == Code::kCancelled);
    }
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
    CHECK(idle.ends().cancelled == 8);
    ok = 1;
  }
  SECTION("between its last token and its status, and after that") {
    // Who comes first decides; both are an end.
    for (int i = 0; i < 20; ++i) {
      const auto stream = client->open(greedy({300, 301}, 3));
      while (stream->read(&response) && !response.has_usage()) {
      }
      stream->cancel();
      const CallResult result = stream->finish();
      CHECK((result.code == Code::kOk || result.code == Code::kCancelled));
      CHECK(result.token_ids.size() == 3);
      stream->cancel();
    }
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
    CHECK(idle.ends().ok + idle.ends().cancelled == 21);
    ok = idle.ends().ok;
  }
  SECTION("by a reset of its stream, twice, with frames after it") {
    RawConnection raw(server().port);
    raw.start();
    for (int i = 0; i < 10; ++i) {
      const uint32_t stream = raw.request(kComplete, endless().SerializeAsString());
      const std::string code("\0\0\0\x08", 4);  // CANCEL
      raw.send(Frame{.type = FrameType::kReset, .stream = stream, .payload = code});
      raw.send(Frame{.type = FrameType::kReset, .stream = stream, .payload = code});
      raw.send(Frame{.type = FrameType::kWindowUpdate, .stream = stream, .payload = std::string("\0\0\1\0", 4)});
    }
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
    ok = 1;
  }
  CHECK(idle.ends().ok == ok);
  CHECK(idle.ends().failed == 0);
}

TEST_CASE("5: a thousand calls, cancelled at random") {
  const auto client = server().connect();
  Neighbour neighbour(server(), 1000, 0.8);
  Idle idle(server(), *client);
  neighbour.start();
  std::minstd_rand random(5);
  std::map<Code, int> seen;
  int unseen = 0;
  client->load(
      1000, 50,
      [&](int i) {
        FaultClient::LoadCall call{.request = greedy(some_ids(i, 1 + static_cast<int>(random() % 120)),
                                                     1 + static_cast<int>(random() % 30))};
        if (random() % 2 == 0) {
          call.cancel_after_messages = static_cast<int>(random() % 8);
        } else {
          call.cancel_after_seconds = static_cast<double>(random() % 1000) / 2000;
        }
        return call;
      },
      [&](int, const FaultClient::LoadCall& call, const CallResult& result) {
        ++seen[result.code];
        if (result.code == Code::kCancelled) ++unseen;  // some before the server knew of them
        if (result.code != Code::kOk) return;
        CHECK(result.has_usage);
        CHECK(result.token_ids.size() == static_cast<size_t>(call.request.sampling().max_tokens()));
      });
  CHECK(neighbour.difference() == "");
  CHECK(idle.difference() == "");
  const Idle::Ends ends = idle.ends();
  CHECK(seen[Code::kOk] + seen[Code::kCancelled] == 1000);
  CHECK(ends.sum() <= 1001);
  CHECK(ends.sum() + unseen >= 1001);
  CHECK(ends.ok >= static_cast<uint64_t>(seen[Code::kOk] + 1));
  CHECK(ends.failed + ends.rejected + ends.deadline == 0);
}

TEST_CASE("6: a deadline that passes is DEADLINE_EXCEEDED, wherever it passes") {
  const auto client = server().connect();
  Neighbour neighbour(server(), 600);
  Idle idle(server(), *client);
  neighbour.start();
  const auto check = [&](const v1::CompleteRequest& request, double seconds) {
    const CallResult result = client->complete(request, {.deadline_seconds = seconds});
    INFO(result.message);
    CHECK(result.code == Code::kDeadlineExceeded);
    CHECK_FALSE(result.has_usage);
  };
  check(endless(), -1);
  check(endless(), 0);
  check(endless(), 0.001);
  check(endless(), 0.05);
  check(greedy(some_ids(7, 1900), 140), 0.02);  // in its prompt
  {
    auto places = fill(*client, 3);
    check(endless(), 0.1);  // in the queue
    check(endless(), 0.02);
  }
  // On the wire, where no client has looked at it first.
  RawConnection raw(server().port);
  raw.start();
  for (const char* timeout : {"0n", "1n", "1u", "1m", "99999999n"}) {
    const uint32_t stream = raw.request(kComplete, endless().SerializeAsString(), {{"grpc-timeout", timeout}});
    const std::string answer = raw.read_stream(stream, kPatienceSeconds);
    INFO(timeout);
    CHECK(answer.find("usage") == std::string::npos);
  }
  // Nonsense for a time.
  for (const char* timeout : {"-1S", "1", "S", "123456789S", "1Z", "\xff"}) {
    raw.send(Frame{.type = FrameType::kReset,
                   .stream = raw.request(kComplete, endless().SerializeAsString(), {{"grpc-timeout", timeout}}),
                   .payload = std::string("\0\0\0\x08", 4)});
  }
  CHECK(neighbour.difference() == "");
  CHECK(idle.difference() == "");
  const Idle::Ends ends = idle.ends();
  CHECK(ends.ok == 1);
  CHECK(ends.deadline >= 3);
  CHECK(ends.failed == 0);
}

}  // namespace
}  // namespace shoal
