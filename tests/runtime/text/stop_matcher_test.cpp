#include "runtime/text/stop_matcher.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

struct Outcome {
  std::string text;
  std::optional<size_t> stop;
  bool operator==(const Outcome&) const = default;
};

Outcome run(const std::vector<std::string>& stops, const std::vector<std::string>& deltas,
            bool include = false) {
  StopMatcher matcher(stops, include);
  Outcome outcome;
  for (const auto& delta : deltas) {
    const auto result = matcher.push(delta);
    outcome.text += result.text;
    if (result.stop_index) outcome.stop = result.stop_index;
  }
  if (!matcher.stopped()) outcome.text += matcher.flush();
  return outcome;
}

TEST_CASE("Text that could begin a stop string is held back") {
  StopMatcher matcher({"STOP"}, false);
  CHECK(matcher.push("abS").text == "ab");
  CHECK(matcher.push("T").text.empty());
  CHECK(matcher.push("x").text == "STx");
  CHECK(matcher.push("STO").text.empty());
  CHECK(matcher.flush() == "STO");
}

TEST_CASE("A stop string is found over deltas and trimmed") {
  StopMatcher matcher({"nope", "\n\n"}, false);
  CHECK(matcher.push("line\n").text == "line");
  const auto result = matcher.push("\nmore");
  CHECK(result.text.empty());
  CHECK(result.stop_index == 1);
  CHECK(matcher.stopped());
  CHECK(matcher.push("more").text.empty());
  CHECK(run({"\n\n"}, {"line\n", "\nmore"}, true) == Outcome{"line\n\n", 0});
}

TEST_CASE("The first to be complete wins, then the longest") {
  CHECK(run({"abcd", "bc"}, {"xabcd"}) == Outcome{"xa", 1});
  CHECK(run({"c", "bc"}, {"abc"}) == Outcome{"a", 1});
  CHECK(run({"aab"}, {"aaab"}) == Outcome{"a", 0});
  CHECK(run({"abab"}, {"aba", "abab"}) == Outcome{"aba", 0});
}

TEST_CASE("How the text is cut does not matter, and no character is cut") {
  const std::vector<std::string> stops = {"\u00E9a", "aab", "ba\u65E5"};
  const std::string letters[] = {"a", "b", "\u00E9", "\u00E8", "\u65E5"};
  uint32_t random = 7;
  for (int round = 0; round < 2000; ++round) {
    std::string whole;
    std::vector<std::string> cut = {""};
    for (int i = 0; i < 12; ++i) {
      random = random * 1664525 + 1013904223;
      const std::string& letter = letters[(random >> 16) % std::size(letters)];
      whole += letter;
      cut.back() += letter;
      if (random & (1u << 30)) cut.emplace_back();
    }
    if (run(stops, {whole}) != run(stops, cut)) FAIL(whole);
  }
}

TEST_CASE("Without stops everything passes; an empty stop is refused") {
  CHECK(run({}, {"a", "b"}) == Outcome{"ab", std::nullopt});
  CHECK_THROWS_WITH(StopMatcher({"a", ""}, false), Catch::Contains("stop[1]"));
}

}  // namespace
}  // namespace shoal
