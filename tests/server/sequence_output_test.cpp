#include "server/sequence_output.h"

#include <catch2/catch.hpp>

#include "tests/server/test_model.h"

namespace shoal {
namespace {

// Feeds `ids` one by one, then the end; gives what the client has at the end.
OutputDelta feed(const std::vector<int32_t>& ids, const TokenEvent& end, SequenceOutput* sequence) {
  OutputDelta all;
  for (const int32_t id : ids) {
    if (sequence->finished()) return all;
    TokenEvent event;
    event.token = id;
    sequence->push(event, &all);
  }
  if (!sequence->finished()) sequence->push(end, &all);
  return all;
}

OutputDelta run(const CallSampling& sampling, OutputFormat format,
                const std::vector<int32_t>& ids) {
  SequenceOutput sequence(test_tokenizer(), sampling, format);
  TokenEvent end;
  end.token = kTestEnd;
  end.matched_stop_token = kTestEnd;
  end.finish_reason = FinishReason::kStop;
  return feed(ids, end, &sequence);
}

TEST_CASE("the end token is counted and not shown", "[output]") {
  SequenceOutput sequence(test_tokenizer(), {}, {});
  TokenEvent end;
  end.token = kTestEnd;
  end.matched_stop_token = kTestEnd;
  end.finish_reason = FinishReason::kStop;
  const OutputDelta delta = feed(test_ids("Hello"), end, &sequence);
  CHECK(delta.content == "Hello");
  CHECK(delta.finish_reason == FinishReason::kStop);
  CHECK(delta.stop_token_id == kTestEnd);
  CHECK(sequence.completion_tokens() == static_cast<int32_t>(test_ids("Hello").size()) + 1);
  CHECK(delta.token_ids.back() == kTestEnd);
}

TEST_CASE("a stop string that spans tokens ends the output before it", "[output]") {
  CallSampling sampling;
  sampling.stop = {"END"};
  // Each letter its own token, so that the stop string spans three.
  std::vector<int32_t> ids;
  for (const char* piece : {"a", "b", "E", "N", "c", "E", "N", "D", "x"}) {
    ids.push_back(test_ids(piece).at(0));
  }
  const OutputDelta delta = run(sampling, {}, ids);
  CHECK(delta.content == "abENc");
  CHECK(delta.finish_reason == FinishReason::kStop);
  CHECK(delta.stop_string == "END");
  sampling.include_stop = true;
  CHECK(run(sampling, {}, ids).content == "abENcEND");
}

TEST_CASE("text that could begin a stop string comes with the end", "[output]") {
  CallSampling sampling;
  sampling.stop = {"END"};
  SequenceOutput sequence(test_tokenizer(), sampling, {});
  OutputDelta delta;
  TokenEvent event;
  event.token = test_ids("E").at(0);
  sequence.push(event, &delta);
  CHECK(delta.content.empty());
  event.token = test_ids("N").at(0);
  event.finish_reason = FinishReason::kLength;
  sequence.push(event, &delta);
  CHECK(delta.content == "EN");
  CHECK(delta.finish_reason == FinishReason::kLength);
}

TEST_CASE("no stop string counts before min_tokens", "[output]") {
  CallSampling sampling;
  sampling.stop = {"a"};
  sampling.params.min_tokens = 2;
  const int32_t a = test_ids("a").at(0);
  const OutputDelta delta = run(sampling, {}, {a, a, a, a});
  CHECK(delta.content == "aa");
  CHECK(delta.token_ids.size() == 3);
}

TEST_CASE("reasoning and content are split and counted", "[output]") {
  const OutputFormat chat{.split_reasoning = true};
  OutputDelta delta = run({}, chat, test_ids("<think>\nhm hm\n</think>\n\nFour."));
  CHECK(delta.reasoning == "hm hm");
  CHECK(delta.content == "Four.");
  const OutputFormat opened{.split_reasoning = true, .starts_in_reasoning = true};
  SequenceOutput sequence(test_tokenizer(), {}, opened);
  TokenEvent end;
  end.finish_reason = FinishReason::kLength;
  delta = feed(test_ids("hm</think>Four."), end, &sequence);
  CHECK(delta.reasoning == "hm");
  CHECK(delta.content == "Four.");
  CHECK(sequence.reasoning_tokens() > 0);
  CHECK(sequence.reasoning_tokens() < sequence.completion_tokens());
  // Complete does not look for it.
  CHECK(run({}, {}, test_ids("<think>x</think>y")).content == "<think>x</think>y");
}

TEST_CASE("a character in several tokens is shown whole", "[output]") {
  const std::vector<int32_t> ids = test_ids("🦭");
  REQUIRE(ids.size() > 1);
  SequenceOutput sequence(test_tokenizer(), {}, {});
  std::string text;
  for (const int32_t id : ids) {
    OutputDelta delta;
    TokenEvent event;
    event.token = id;
    sequence.push(event, &delta);
    CHECK((delta.content.empty() || delta.content == "🦭"));
    text += delta.content;
  }
  CHECK(text == "🦭");
}

}  // namespace
}  // namespace shoal
