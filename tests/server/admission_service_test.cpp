// Limits as clients meet them, through a real gRPC connection; and that nothing leaks.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <random>

#include "google/rpc/error_details.pb.h"
#include "tests/server/service_fixture.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using std::chrono::milliseconds;
using std::chrono::seconds;

int64_t resident_bytes() {
  int64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

google::rpc::Status details_of(const grpc::Status& status) {
  google::rpc::Status details;
  REQUIRE(details.ParseFromString(status.error_details()));
  return details;
}

void check_books(ServiceFixture& fixture) {
  REQUIRE(fixture.engine.wait_idle());
  REQUIRE(eventually([&] { return fixture.front_end.book().counts().open == 0; }));
  REQUIRE(eventually([&] { return fixture.front_end.book().admission().idle(); }));
  const CallCounts counts = fixture.front_end.book().counts();
  CHECK(counts.accepted == counts.ok + counts.cancelled + counts.deadline_exceeded + counts.failed);
  CHECK(counts.sequences == 0);
  CHECK(counts.pending_bytes == 0);
  uint64_t rejected = 0;
  for (const auto& [reason, count] : counts.rejected_by) rejected += count;
  CHECK(counts.rejected == rejected);
}

TEST_CASE("a burst of ten times the queue: the surplus is told at once when to come back, the rest served",
          "[service]") {
  ServiceFixture fixture(10);
  fixture.answer_with("Hi there.");
  fixture.engine.pause(true);
  std::vector<std::thread> clients;
  std::atomic<int> ok = 0, refused = 0, wrong = 0;
  for (int i = 0; i < 100; ++i) {
    clients.emplace_back([&] {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + seconds(60));
      const auto answer = fixture.chat(fixture.question("Hello"), &context);
      if (answer.status.ok() && answer.content == "Hi there.") {
        ++ok;
      } else if (answer.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
        const auto& trailers = context.GetServerTrailingMetadata();
        const auto pushback = trailers.find("grpc-retry-pushback-ms");
        google::rpc::Status details;
        google::rpc::RetryInfo retry;
        const bool told = pushback != trailers.end() &&
                          std::string(pushback->second.data(), pushback->second.size()) == "1000" &&
                          details.ParseFromString(answer.status.error_details()) &&
                          details.details_size() == 2 && details.details(0).UnpackTo(&retry) &&
                          retry.retry_delay().seconds() == 1 && retry.retry_delay().nanos() == 0;
        ++(told ? refused : wrong);
      } else {
        ++wrong;
      }
    });
  }
  // They are refused while the others wait.
  REQUIRE(eventually([&] { return refused + wrong == 90; }));
  CHECK(fixture.engine.live() == 10);
  fixture.engine.pause(false);
  for (std::thread& client : clients) client.join();
  CHECK(ok == 10);
  CHECK(refused == 90);
  check_books(fixture);
  CHECK(fixture.front_end.status().calls_accepted() == 10);
  CHECK(fixture.front_end.status().calls_rejected_by().at("queue_full") == 90);
}

TEST_CASE("a deadline that cannot be made is refused at once, and does not reach the engine", "[service]") {
  ServiceFixture fixture;
  fixture.engine.pause(true);
  const auto call = [&](seconds deadline) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + deadline);
    return fixture.chat(fixture.question("Hello"), &context).status;
  };
  fixture.engine.set_rates(1000, 0.1);  // seconds a token
  const auto begun = std::chrono::steady_clock::now();
  const grpc::Status status = call(seconds(1000));
  CHECK(std::chrono::steady_clock::now() - begun < seconds(500));
  CHECK(status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  CHECK_THAT(status.error_message(), Contains("its first token could not come before"));
  google::rpc::ErrorInfo info;
  REQUIRE(details_of(status).details_size() == 1);  // nothing says when it would be better
  REQUIRE(details_of(status).details(0).UnpackTo(&info));
  CHECK(info.reason() == "DEADLINE");
  CHECK(fixture.engine.submitted().empty());
  CHECK(fixture.front_end.status().calls_rejected_by().at("deadline") == 1);
  CHECK(fixture.front_end.status().calls_deadline_exceeded() == 0);
  // Not known, as after a restart: it may try.
  fixture.engine.set_rates(0, 0);
  CHECK(call(seconds(1)).error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  CHECK(fixture.engine.submitted().size() == 1);
  fixture.engine.pause(false);
  check_books(fixture);
  CHECK(fixture.front_end.status().calls_deadline_exceeded() == 1);
}

TEST_CASE("a client gets no better priority than it may have, and its own limits", "[service]") {
  ServiceFixture fixture;
  fixture.engine.pause(true);
  Client client;
  client.id = 42;
  client.best_priority = 5;
  client.max_sequences = 2;
  CallContext context;
  context.client = std::make_shared<Client>(client);
  v1::ChatRequest request = fixture.question("Hello");
  std::vector<std::shared_ptr<Call>> calls;
  for (const int32_t priority : {-100, 7}) {
    request.set_priority(priority);
    calls.push_back(fixture.front_end.chat(request, context));
    calls.back()->start([] {});
  }
  REQUIRE(fixture.engine.submitted().size() == 2);
  CHECK(fixture.engine.submitted()[0].priority == 5);
  CHECK(fixture.engine.submitted()[0].client == 42);
  CHECK(fixture.engine.submitted()[1].priority == 7);
  CHECK_THROWS_AS(fixture.front_end.chat(request, context), CallRefused);
  CHECK_NOTHROW(fixture.front_end.chat(request, {}));  // admitted, and never started
  CHECK(fixture.front_end.book().counts().sequences == 2);
  fixture.engine.pause(false);
  for (const auto& call : calls) {
    call->end({CallCode::kCancelled, "enough"});
    CallUpdate update;
    CHECK(call->take(&update) == Call::Next::kEnd);
  }
  check_books(fixture);
}

TEST_CASE("while the model loads callers are told to come back", "[service]") {
  ServiceFixture fixture;
  fixture.engine.set_context(0);
  fixture.engine.set_state(EngineState::kLoading, "40 %");
  const auto answer = fixture.chat(fixture.question("Hello"));
  CHECK(answer.status.error_code() == grpc::StatusCode::UNAVAILABLE);
  google::rpc::RetryInfo retry;
  REQUIRE(details_of(answer.status).details(0).UnpackTo(&retry));
  CHECK(retry.retry_delay().seconds() == 1);
  CHECK(fixture.front_end.status().calls_rejected_by().at("loading") == 1);
}

TEST_CASE("a slow reader bounds only itself", "[service]") {
  ServiceFixture fixture;
  fixture.engine.set_context(100'000);
  fixture.answer_without_end();
  // A window of one message, and nobody who reads: what is sent stays with the server.
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto slow = v1::Inference::NewStub(grpc::CreateCustomChannel(
      fixture.server.address(), grpc::InsecureChannelCredentials(), args));
  const int64_t before = resident_bytes();
  grpc::ClientContext context;
  v1::ChatRequest flood = fixture.question("Hello");
  flood.mutable_sampling()->set_n(32);
  flood.mutable_sampling()->set_logprobs(20);
  flood.mutable_sampling()->set_max_tokens(6'000);
  const auto reader = slow->Chat(&context, flood);
  v1::ChatResponse response;
  REQUIRE(reader->Read(&response));
  REQUIRE(eventually([&] { return fixture.engine.live() == 32; }));
  fixture.answer_with("Hi");
  int64_t most_pending = 0, most_resident = 0;
  int others = 0;
  // Until the flood is over its limit others get their answers.
  while (fixture.front_end.book().counts().failed == 0) {
    REQUIRE(fixture.chat(fixture.question("Hello")).content == "Hi");
    most_pending = std::max(most_pending, fixture.front_end.book().counts().pending_bytes);
    most_resident = std::max(most_resident, resident_bytes());
    REQUIRE(++others < 20'000);
  }
  CHECK(others >= 3);
  CHECK(most_pending > 100'000);
  CHECK(most_pending <= int64_t{kMaxPendingBytes} + (64 << 10));  // and the token that was too much
  // The update that waits, the message being written and gRPC's copy of it, with room for the heap's.
  CHECK(most_resident - before < int64_t{100} << 20);
  while (reader->Read(&response)) {
  }
  CHECK(!reader->Finish().ok());
  check_books(fixture);
}

TEST_CASE("a reader that is slow but reads gets all of it, in fewer messages", "[service]") {
  ServiceFixture fixture;
  fixture.engine.set_context(4000);
  fixture.answer_without_end();
  v1::ChatRequest request = fixture.question("Hello");
  constexpr int kTokens = 500, kSamples = 8;  // 3 MB: more than lies on the way, less than may wait
  request.mutable_sampling()->set_max_tokens(kTokens);
  request.mutable_sampling()->set_n(kSamples);
  request.mutable_sampling()->set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = fixture.stub->Chat(&context, request);
  v1::ChatResponse response;
  REQUIRE(reader->Read(&response));
  int messages = 1, tokens = 0;
  const auto count = [&] {
    for (const auto& output : response.outputs()) tokens += output.logprobs_size();
  };
  count();
  REQUIRE(fixture.engine.wait_idle());  // reads on when all is there
  while (reader->Read(&response)) {
    ++messages;
    count();
  }
  CHECK(reader->Finish().ok());
  CHECK(tokens == kTokens * kSamples);
  CHECK(messages < kTokens * kSamples / 2);
  check_books(fixture);
}

// Every way to begin and to end, all at once.
TEST_CASE("a thousand calls of all kinds leave nothing behind", "[service]") {
  ServiceFixture fixture(48);
  const std::string text = "one two three four five six seven eight nine ten eleven twelve";
  fixture.answer_with(text);
  constexpr int kClients = 8, kCalls = 125;
  std::atomic<int> ok = 0, partial = 0, done = 0;
  const auto client = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    const auto stub = v1::Inference::NewStub(fixture.channel());
    for (int i = 0; i < kCalls; ++i, ++done) {
      v1::ChatRequest request = fixture.question("Hello");
      grpc::ClientContext context;
      request.mutable_sampling()->set_n(pick(0, 3) == 0 ? pick(2, 20) : 1);
      request.set_stream(pick(0, 2) != 0);
      request.set_priority(pick(-2, 2));
      std::string expected = text;
      if (pick(0, 5) == 0) {
        request.mutable_sampling()->add_stop("eigh");
        expected = "one two three four five six seven ";
      }
      if (pick(0, 9) == 0) request.mutable_sampling()->set_top_p(5);
      if (pick(0, 19) == 0) request.set_model("other");
      int reads = 1 << 20;  // then it goes
      switch (pick(0, 3)) {
        case 0: reads = pick(0, 6); break;
        case 1:
          context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::microseconds(pick(0, 15'000)));
          break;
        default: break;
      }
      const auto reader = stub->Chat(&context, request);
      std::map<uint32_t, std::string> content;
      v1::ChatResponse response;
      while (reads-- > 0 && reader->Read(&response)) {
        for (const auto& output : response.outputs()) content[output.index()] += output.content();
      }
      if (reads < 0) context.TryCancel();
      const grpc::Status status = reader->Finish();
      if (!status.ok()) continue;
      ++ok;
      if (content.size() != request.sampling().n()) ++partial;
      for (const auto& [index, all] : content) partial += all != expected;
    }
  };
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) clients.emplace_back(client, 100 + c);
  // Meanwhile the engine halts, goes on and fails.
  std::mt19937 random(7);
  while (done < kClients * kCalls) {
    std::this_thread::sleep_for(milliseconds(5));
    const uint32_t what = random() % 20;
    if (what == 0) fixture.engine.fail_all("a step failed");
    fixture.engine.pause(what == 1);
  }
  fixture.engine.pause(false);
  for (std::thread& thread : clients) thread.join();
  check_books(fixture);
  const CallCounts counts = fixture.front_end.book().counts();
  CHECK(partial == 0);
  CHECK(ok > 100);
  CHECK(static_cast<int>(counts.ok) >= ok);
  CHECK(counts.accepted + counts.rejected <= kClients * kCalls);  // some never came here
  // It reached what it is for.
  CHECK(counts.cancelled > 20);
  CHECK(counts.deadline_exceeded > 10);
  CHECK(counts.failed > 0);
  CHECK(counts.rejected_by.at("invalid_argument") > 20);
  CHECK(counts.rejected_by.at("not_found") > 5);
  CHECK(counts.rejected_by.count("internal") == 0);
}

}  // namespace
}  // namespace shoal
