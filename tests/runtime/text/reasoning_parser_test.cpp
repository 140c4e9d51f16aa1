#include "runtime/text/reasoning_parser.h"

#include <catch2/catch.hpp>
#include <string>

namespace shoal {
namespace {

struct Split {
  std::string reasoning;
  std::string content;
  bool operator==(const Split&) const = default;
};

// Pushes `text` in deltas of `size` bytes.
Split parse(const std::string& text, bool starts_in_reasoning, size_t size) {
  ReasoningParser parser(starts_in_reasoning);
  Split split;
  const auto add = [&](const ReasoningParser::Delta& delta) {
    split.reasoning += delta.reasoning;
    split.content += delta.content;
  };
  for (size_t i = 0; i < text.size(); i += size) add(parser.push(text.substr(i, size)));
  add(parser.flush());
  return split;
}

void check(const std::string& text, bool starts_in_reasoning, const Split& expected) {
  for (size_t size = 1; size <= text.size() + 1; ++size) {
    INFO(text << " in deltas of " << size);
    const Split split = parse(text, starts_in_reasoning, size);
    CHECK(split.reasoning == expected.reasoning);
    CHECK(split.content == expected.content);
  }
}

TEST_CASE("Reasoning that the model opens itself") {
  check("<think>\nhm\nyes\n</think>\n\nHello\n", false, {"hm\nyes", "Hello\n"});
  check(" \n<think>hm</think>Hello", false, {"hm", "Hello"});
  check("<think>\n\n</think>\n\nHello", false, {"", "Hello"});
}

TEST_CASE("Reasoning that the prompt has opened") {
  check("hm</think>\n\nHello", true, {"hm", "Hello"});
  check("\nhm\n\n</think>Hello", true, {"hm", "Hello"});
  check("<think>\nhm</think>Hello", true, {"hm", "Hello"});  // opened once more
  check("</think>Hello", true, {"", "Hello"});
}

TEST_CASE("No reasoning, and tags where they mean nothing") {
  check("Hello", false, {"", "Hello"});
  check("  Hello <think>x</think>", false, {"", "  Hello <think>x</think>"});
  check("<thin air", false, {"", "<thin air"});
  check("<think>a</think>b</think>c<think>d", false, {"a", "b</think>c<think>d"});
  check("a <think> b</think>c", true, {"a <think> b", "c"});
}

TEST_CASE("A missing end: everything is reasoning, and nothing is lost") {
  check("<think>hm", false, {"hm", ""});
  check("hm\n", true, {"hm\n", ""});
  check("hm</thin", true, {"hm</thin", ""});
  check("a\n\nb<c", true, {"a\n\nb<c", ""});
  check("<thi", false, {"", "<thi"});
  check("", true, {"", ""});
}

TEST_CASE("Certain text is not held back") {
  ReasoningParser parser(true);
  CHECK(parser.push("hm").reasoning == "hm");
  CHECK(parser.push("\n").reasoning.empty());
  CHECK(parser.push("more</").reasoning == "\nmore");
  CHECK(parser.in_reasoning());
  CHECK(parser.push("think>\n").reasoning.empty());
  CHECK_FALSE(parser.in_reasoning());
  CHECK(parser.push("\nHi").content == "Hi");
  CHECK(parser.push("\n").content == "\n");
}

TEST_CASE("A prompt opens the reasoning when it ends with the tag") {
  CHECK(prompt_opens_reasoning("<|Assistant|><think>\n"));
  CHECK(prompt_opens_reasoning("<|Assistant|><think>"));
  CHECK_FALSE(prompt_opens_reasoning("<think>\n\n</think>\n\n"));
  CHECK_FALSE(prompt_opens_reasoning("<think> hm"));
  CHECK_FALSE(prompt_opens_reasoning(""));
}

}  // namespace
}  // namespace shoal
