#include "runtime/text/pre_tokenizer.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Strings = std::vector<std::string>;

Strings split(const nlohmann::json& json, const std::string& text) {
  const PreTokenizer pre_tokenizer(json);
  PreTokenizerScratch scratch;
  Strings out;
  for (const auto piece : pre_tokenizer.split(text, &scratch)) out.emplace_back(piece);
  return out;
}

nlohmann::json split_json(const std::string& regex, const std::string& behavior,
                          bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

// Expected pieces are those of tokenizers 0.23.3 for the same steps.
TEST_CASE("Each behavior of Split") {
  CHECK(split(split_json("-", "Removed"), "a--b-") == Strings{"a", "b"});
  CHECK(split(split_json("-", "Isolated"), "a--b-") == Strings{"a", "-", "-", "b", "-"});
  CHECK(split(split_json("-", "MergedWithPrevious"), "a--b-") == Strings{"a-", "-", "b-"});
  CHECK(split(split_json("-", "MergedWithNext"), "a--b-") == Strings{"a", "-", "-b", "-"});
  CHECK(split(split_json("-", "Contiguous"), "a--b-") == Strings{"a", "--", "b", "-"});
  CHECK(split(split_json("[ab]+", "Removed", true), "a--b-") == Strings{"a", "b"});
  CHECK(split(split_json("x*", "Isolated"), "axb") == Strings{"a", "x", "b"});
  CHECK(split(split_json("-", "Isolated"), "").empty());
}

TEST_CASE("Strings, digits and sequences") {
  const nlohmann::json literal = {{"type", "Split"},
                                  {"pattern", {{"String", ".*"}}},
                                  {"behavior", "Isolated"},
                                  {"invert", false}};
  CHECK(split(literal, "a.*b") == Strings{"a", ".*", "b"});
  CHECK(split({{"type", "Digits"}, {"individual_digits", true}}, "a12\u00BD3") ==
        Strings{"a", "1", "2", "\u00BD", "3"});
  CHECK(split({{"type", "Digits"}, {"individual_digits", false}}, "a12b3") ==
        Strings{"a", "12", "b", "3"});
  CHECK(split({{"type", "Sequence"},
               {"pretokenizers", {split_json("b", "Isolated"), split_json("\\d", "Isolated")}}},
              "a1b2") == Strings{"a", "1", "b", "2"});
  CHECK(split(nullptr, "a b") == Strings{"a b"});
}

TEST_CASE("ByteLevel splits by GPT-2's pattern and may put a space before") {
  const nlohmann::json with_space = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  CHECK(split(with_space, "it's 12  x") == Strings{" it", "'s", " 12", " ", " x"});
  CHECK(PreTokenizer(with_space).byte_level());
  CHECK_FALSE(PreTokenizer(nullptr).byte_level());
}

TEST_CASE("Components that are not supported are named") {
  const nlohmann::json metaspace = {{"type", "Metaspace"}};
  CHECK_THROWS_WITH(PreTokenizer(metaspace), Catch::Contains("Metaspace"));
  CHECK_THROWS_WITH(PreTokenizer(split_json("a", "Whatever")), Catch::Contains("Whatever"));
  const auto after = nlohmann::json::parse(
      R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]})");
  CHECK_THROWS_WITH(PreTokenizer(after), Catch::Contains("pretokenizers[1]"));
  nlohmann::json nested = {{"type", "ByteLevel"}};
  for (int i = 0; i < 50; ++i) nested = {{"type", "Sequence"}, {"pretokenizers", {nested}}};
  CHECK_THROWS_AS(PreTokenizer(nested), InvalidInput);
}

}  // namespace
}  // namespace shoal
