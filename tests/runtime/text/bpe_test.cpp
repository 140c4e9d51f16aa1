#include "runtime/text/bpe.h"

#include <catch2/catch.hpp>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Ids = std::vector<int32_t>;

Ids encode(const nlohmann::json& model, const std::string& word) {
  BpeScratch scratch;
  Ids ids;
  BpeModel(model, false).encode(word, &scratch, &ids);
  return ids;
}

// The textbook loop: merge the pair of lowest rank, leftmost, until none is left.
std::vector<std::string> merge_slowly(
    std::vector<std::string> symbols,
    const std::map<std::pair<std::string, std::string>, size_t>& ranks) {
  while (true) {
    size_t best = symbols.size();
    size_t best_rank = ranks.size();
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = ranks.find({symbols[i], symbols[i + 1]});
      if (it != ranks.end() && it->second < best_rank) {
        best = i;
        best_rank = it->second;
      }
    }
    if (best == symbols.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST_CASE("Merges by rank equal the textbook loop") {
  // All strings over {a, b} up to 4 letters, as merges that build on each other.
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"a", "b"}, {"b", "a"}, {"a", "a"}, {"ab", "a"}, {"b", "b"}, {"aa", "b"}, {"ab", "ab"}};
  nlohmann::json model = {{"vocab", {{"a", 0}, {"b", 1}}}, {"merges", nlohmann::json::array()}};
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  std::map<std::string, int32_t> ids = {{"a", 0}, {"b", 1}};
  for (const auto& merge : merges) {
    const std::string joined = merge.first + merge.second;
    if (!ids.contains(joined)) ids[joined] = static_cast<int32_t>(ids.size());
    model["vocab"][joined] = ids[joined];
    ranks[merge] = ranks.size();
    model["merges"].push_back({merge.first, merge.second});
  }
  for (int length = 1; length <= 12; ++length) {
    for (int bits = 0; bits < (1 << length); ++bits) {
      std::string word;
      std::vector<std::string> symbols;
      for (int i = 0; i < length; ++i) word += (bits >> i) & 1 ? 'b' : 'a';
      for (const char c : word) symbols.emplace_back(1, c);
      Ids expected;
      for (const auto& symbol : merge_slowly(symbols, ranks)) expected.push_back(ids[symbol]);
      if (encode(model, word) != expected) FAIL(word);
    }
  }
}

TEST_CASE("A very long word is merged in bounded time") {
  const nlohmann::json model = {{"vocab", {{"a", 0}, {"aa", 1}, {"aaaa", 2}}},
                                {"merges", {"a a", "aa aa"}}};
  CHECK(encode(model, std::string(1 << 20, 'a')).size() == (1 << 18));
}

TEST_CASE("Unknown characters, fusing and byte fallback") {
  nlohmann::json model = {{"vocab", {{"a", 0}, {"?", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}}},
                          {"merges", nlohmann::json::array()}};
  CHECK(encode(model, "axxa") == Ids{0, 0});  // no unk token: dropped
  model["unk_token"] = "?";
  CHECK(encode(model, "axxa") == Ids{0, 1, 1, 0});
  model["fuse_unk"] = true;
  CHECK(encode(model, "axxa") == Ids{0, 1, 0});
  model["byte_fallback"] = true;
  CHECK(encode(model, "a\u00E9x") == Ids{0, 2, 3, 1});
}

TEST_CASE("ignore_merges takes a word that is a token as it is") {
  nlohmann::json model = {{"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}},
                          {"merges", nlohmann::json::array()}};
  CHECK(encode(model, "ab") == Ids{0, 1});
  model["ignore_merges"] = true;
  CHECK(encode(model, "ab") == Ids{2});
}

TEST_CASE("A model that is malformed or not supported is refused by name") {
  const nlohmann::json good = {{"vocab", {{"a", 0}, {"b", 1}}},
                               {"merges", nlohmann::json::array()}};
  const std::pair<nlohmann::json, std::string> cases[] = {
      {{{"merges", {"a b"}}}, "\"ab\""},
      {{{"merges", {"a c"}}}, "\"c\""},
      {{{"merges", {"ab"}}}, "merges[0]"},
      {{{"merges", {"a b c"}}}, "merges[0]"},
      {{{"merges", nlohmann::json::parse(R"([["a", 1]])")}}, "merges[0]"},
      {{{"merges", {{"a", "b", "c"}}}}, "merges[0]"},
      {{{"merges", 5}}, "model.merges"},
      {{{"merges", nullptr}}, "model.merges"},
      {{{"vocab", {{"a", -1}}}}, "-1"},
      {{{"vocab", {{"a", 4294967296}}}}, "4294967296"},
      {{{"vocab", {{"a", 0.5}}}}, "0.5"},
      {{{"vocab", {{"a", "0"}}}}, "\"0\""},
      {{{"vocab", {"a"}}}, "model.vocab"},
      {{{"type", "Unigram"}}, "Unigram"},
      {{{"dropout", 0.1}}, "dropout"},
      {{{"unk_token", "?"}}, "unk_token"},
      {{{"continuing_subword_prefix", "##"}}, "##"},
      {{{"end_of_word_suffix", "</w>"}}, "</w>"},
      {{{"byte_fallback", "yes"}}, "byte_fallback"},
  };
  CHECK_NOTHROW(BpeModel(good, true));
  for (const auto& [change, named] : cases) {
    nlohmann::json model = good;
    model.update(change);
    INFO(model.dump());
    CHECK_THROWS_WITH(BpeModel(model, true), Catch::Contains(named));
    CHECK_THROWS_AS(BpeModel(model, true), InvalidInput);
  }
  CHECK_THROWS_AS(BpeModel(nlohmann::json::array(), true), InvalidInput);
}

}  // namespace
}  // namespace shoal
