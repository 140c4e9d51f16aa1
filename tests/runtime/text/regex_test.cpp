#include "runtime/text/regex.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

std::vector<std::string> all_matches(const std::string& pattern, const std::string& text) {
  const Regex regex(pattern, "test");
  RegexScratch scratch;
  std::vector<std::string> found;
  RegexMatch match;
  for (size_t at = 0; at <= text.size() && regex.find(text, at, &scratch, &match);
       at = match.end + (match.begin == match.end ? 1 : 0)) {
    found.push_back(text.substr(match.begin, match.end - match.begin));
  }
  return found;
}

using Strings = std::vector<std::string>;

TEST_CASE("Classes have the meaning of Oniguruma") {
  CHECK(all_matches(R"(\s+)", "a\u0085b\u180Ec\u3000\u00A0d") == Strings{"\u0085", "\u3000\u00A0"});
  CHECK(all_matches(R"([^\s]+)", "a\u180Eb c") == Strings{"a\u180Eb", "c"});
  CHECK(all_matches(R"(\w+)", "na\u00EFve_\u0301 x") == Strings{"na\u00EFve_\u0301", "x"});
  CHECK(all_matches(R"(\d+)", "12\u0663\u00B2") == Strings{"12\u0663"});
  CHECK(all_matches(R"(\p{N}+)", "12\u0663\u00B2") == Strings{"12\u0663\u00B2"});
  CHECK(all_matches(R"((?i:'s))", "'S '\u017F") == Strings{"'S", "'\u017F"});
  CHECK(all_matches("^a$", "a\nb\na") == Strings{"a", "a"});  // at every line
  CHECK(all_matches("[一-龥]+", "a日本b") == Strings{"日本"});
}

TEST_CASE("What means something else in PCRE2 is refused by name") {
  const std::pair<std::string, std::string> cases[] = {{R"([a&&b])", "&&"},
                                                       {R"([a[bc]])", "set inside a set"},
                                                       {R"(a{2}+)", "possessive"},
                                                       {R"(\h)", "\\h"},
                                                       {R"([\S])", "negated class"},
                                                       {R"(\x80)", "byte escape"},
                                                       {R"((*UTF)a)", "(*VERB)"},
                                                       {R"(a{,3})", "{,3}"},
                                                       {R"(\pL)", "braces"},
                                                       {"a\\", "backslash"},
                                                       {"(", "missing closing parenthesis"},
                                                       {R"(\Ga)", "\\G"},
                                                       {R"(\p{Nonsense})", "unknown property"}};
  for (const auto& [pattern, named] : cases) {
    INFO(pattern);
    CHECK_THROWS_WITH(Regex(pattern, "here"), Catch::Contains(named) && Catch::Contains("here"));
    CHECK_THROWS_AS(Regex(pattern, "here"), InvalidInput);
  }
  CHECK_THROWS_AS(Regex(std::string(100'000, 'a'), "here"), InvalidInput);
  CHECK_THROWS_AS(Regex(std::string(10'000, '('), "here"), InvalidInput);
}

TEST_CASE("A catastrophic pattern ends with an error") {
  CHECK_THROWS_AS(all_matches("(a|aa|a?)+$", std::string(200, 'a') + "b"), InvalidInput);
}

TEST_CASE("Long runs are within the limits") {
  CHECK(all_matches(R"(\s+(?!\S)|\s+)", std::string(2'000'000, ' ') + "x").size() == 2);
  CHECK(all_matches(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", std::string(2'000'000, ' ')).size() == 1);
  CHECK(all_matches(R"([\p{L}\p{M}]+)", std::string(2'000'000, 'x')).size() == 1);
}

}  // namespace
}  // namespace shoal
