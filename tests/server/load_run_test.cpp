// The load generator against a real gRPC server over a fake engine: what is sent is what was asked
// for, and nothing is lost.
#include "server/load/load_run.h"

#include <catch2/catch.hpp>
#include <set>

#include "server/load/load_result.h"
#include "tests/server/service_fixture.h"

namespace shoal {
namespace {

struct Bench {
  explicit Bench(int64_t max_sequences = 1024) : service(max_sequences) {
    options.address.server = service.server.address();
    options.input_len = 8;
    options.output_len = 6;
    options.ignore_eos = true;
    service.answer_without_end();
  }

  LoadRecord run(bool chat = false) {
    if (chat) options.backend = "shoal-chat";
    LoadClient client(options.address, chat, options.connections);
    const LoadServer server = client.connect([](const std::string&) {});
    Workload workload(options, {server.vocab_size, server.context_length, server.end_ids,
                                [&](const std::string& text) { return client.tokenize(text); }});
    std::function<std::string(const std::vector<int32_t>&)> detokenize;
    if (chat) detokenize = [&](const std::vector<int32_t>& ids) { return client.detokenize(ids); };
    LoadRun run(options, client, workload, detokenize);
    if (options.num_warmups > 0) run.warm_up(options.num_warmups);
    return run.run([&](int64_t done) { progress = done; }, stop);
  }
  LoadResult figures(const LoadRecord& record) const {
    return make_result(record, report_options(options));
  }

  ServiceFixture service;
  BenchServeOptions options;
  std::atomic<bool> stop{false};
  int64_t progress = 0;
};

TEST_CASE("a closed loop answers every request and stays within its concurrency", "[load]") {
  Bench bench;
  bench.options.num_prompts = 40;
  bench.options.max_concurrency = 5;
  bench.options.num_warmups = 3;
  bench.options.connections = 2;
  const LoadRecord record = bench.run();
  const LoadResult result = bench.figures(record);
  CHECK(result.completed == 40);
  CHECK(result.failed == 0);
  CHECK(result.input_tokens == 40 * 8);
  CHECK(result.output_tokens == 40 * 6);
  CHECK(record.peak_concurrency == 5);
  CHECK(bench.service.engine.submitted().size() == 43);
  int64_t sent = 0, completed = 0, tokens = 0;
  for (const LoadSecond& second : record.seconds) {
    sent += second.sent;
    completed += second.completed;
    tokens += second.tokens;
    CHECK(second.concurrency <= 5);
  }
  CHECK((sent == 40 && completed == 40 && tokens == 240));
  for (const LoadOutcome& outcome : record.outcomes) {
    CHECK(outcome.answer.ttft >= 0);
    CHECK(outcome.answer.latency >= outcome.answer.ttft);
    CHECK(outcome.answer.itl.size() <= 5);
  }
}

TEST_CASE("each turn carries what was said before", "[load]") {
  const bool chat = GENERATE(false, true);
  CAPTURE(chat);
  Bench bench;
  bench.options.num_prompts = 6;
  bench.options.turns = 3;
  bench.options.max_concurrency = 1;
  if (chat) bench.service.answer_with("fine");
  const LoadRecord record = bench.run(chat);
  CHECK(bench.figures(record).completed == 6);
  const std::vector<Request> sent = bench.service.engine.submitted();
  REQUIRE(sent.size() == 6);
  // Two conversations, one after the other or by turns: the prompts of each grow.
  std::multiset<size_t> lengths;
  int continued = 0;
  for (size_t i = 0; i < 6; ++i) {
    lengths.insert(sent[i].tokens.size());
    for (size_t j = 0; j < i; ++j) {
      const auto& earlier = sent[j].tokens;
      if (earlier.size() < sent[i].tokens.size() && earlier.size() > 12 &&
          std::equal(earlier.begin(), earlier.end() - (chat ? 4 : 0), sent[i].tokens.begin())) {
        ++continued;
      }
    }
  }
  if (!chat) CHECK(lengths == std::multiset<size_t>{8, 8, 22, 22, 36, 36});
  CHECK(continued >= 2);
}

TEST_CASE("cancelled, late and refused requests are told apart, and add up", "[load]") {
  Bench bench(/*max_sequences=*/30);
  bench.options.num_prompts = 200;
  bench.options.output_len = 60;
  bench.options.cancel_fraction = 0.4;
  bench.options.deadline_ms = "2:400";
  const LoadRecord record = bench.run();
  const LoadResult result = bench.figures(record);
  CHECK(record.outcomes.size() == 200);
  CHECK(result.completed + result.cancelled + result.failed == 200);
  CHECK(result.cancelled > 0);
  CHECK(result.failed > 0);  // 30 sequences may be alive, and all came at once
  int64_t all = 0;
  for (const auto& [status, count] : result.statuses) {
    CHECK((status == "OK" || status == "CANCELLED" || status == "DEADLINE_EXCEEDED" ||
           status == "RESOURCE_EXHAUSTED"));
    all += count;
  }
  CHECK(all == 200);
  CHECK(bench.service.engine.wait_idle());
  CHECK(eventually([&] {
    const CallCounts counts = bench.service.front_end.book().counts();
    return counts.open == 0 && counts.ok + counts.cancelled + counts.deadline_exceeded +
                                       counts.rejected + counts.failed <=
                                   200;
  }));
}

TEST_CASE("an open loop keeps its times, and ends when told", "[load]") {
  Bench bench;
  bench.options.request_rate = 100;
  bench.options.arrival = "constant";
  bench.options.duration = 0.5;
  const LoadRecord record = bench.run();
  // 50 are due; a busy machine may send the last ones too late to count.
  CHECK((record.outcomes.size() >= 10 && record.outcomes.size() <= 50));
  for (const LoadOutcome& outcome : record.outcomes) CHECK(outcome.lag >= 0);
  bench.options.duration = 3600;
  bench.stop = true;
  const LoadRecord stopped = bench.run();
  CHECK(stopped.outcomes.empty());
  CHECK(stopped.interrupted);
}

TEST_CASE("a failing warm-up is said, and a server that is not there", "[load]") {
  Bench bench;
  bench.options.num_warmups = 2;
  bench.options.num_prompts = 2;
  bench.service.engine.set_state(EngineState::kFailed, "broken");
  CHECK_THROWS_WITH(bench.run(), Catch::Matchers::Contains("not serving: broken"));
  ServerAddress nowhere;
  nowhere.server = "127.0.0.1:1";
  LoadClient client(nowhere, false, 1);
  CHECK_THROWS_WITH(client.connect([](const std::string&) {}),
                    Catch::Matchers::Contains("no server answers at 127.0.0.1:1"));
}

}  // namespace
}  // namespace shoal
