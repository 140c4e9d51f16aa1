// The BPE model of tokenizer.json: a vocabulary and ranked merges.
// Immutable after construction, thread-safe; each call brings its own BpeScratch.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace shoal {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using TokenMap = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// The merges, keyed by the pair of token ids that they join. Open addressing: one cache line per
// look-up, which is what encoding spends its time on.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t result;
  };

  void reserve(size_t count);
  // A pair that is already there gets the new merge.
  void insert(int32_t left, int32_t right, Merge merge);
  // Null if the pair does not merge. Valid until the next insert.
  const Merge* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge{};
  };
  // No pair of non-negative ids has this key.
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  size_t slot_of(uint64_t key) const;

  std::vector<Slot> slots_;
  int shift_ = 64;
};

class BpeScratch {
 private:
  friend class BpeModel;
  struct Symbol {
    int32_t id;
    int32_t previous;  // index of the neighbour, -1 at an end
    int32_t next;
    bool merged_away;
  };
  struct Candidate {
    uint64_t order;  // rank in the high half, position in the low: the smallest merges first
    int32_t result;
    // Reversed, because the heap functions of the standard library keep the largest on top.
    bool operator<(const Candidate& other) const { return order > other.order; }
  };
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

class BpeModel {
 public:
  // `json` is the "model" member. With `byte_level`, words are bytes and the vocabulary is written
  // in the byte alphabet. Throws InvalidInput for what is malformed, contradictory or not
  // supported.
  BpeModel(const nlohmann::json& json, bool byte_level);

  // Appends the ids of one piece of text (from the pre-tokenizer).
  void encode(std::string_view word, BpeScratch* scratch, std::vector<int32_t>* ids) const;

  // By the spelling in the file.
  std::optional<int32_t> token_to_id(std::string_view token) const;
  const TokenMap& vocab() const { return vocab_; }

 private:
  void load_vocab(const nlohmann::json& json);
  void load_merges(const nlohmann::json& json);
  // The initial symbols of one character; `unknown` carries a run of unknown characters (fuse_unk).
  void append_character(std::string_view character, bool* unknown, BpeScratch* scratch) const;
  void append_symbol(int32_t id, BpeScratch* scratch) const;
  void push_candidate(int32_t left, int32_t right, BpeScratch* scratch) const;
  void merge_symbols(BpeScratch* scratch) const;

  bool byte_level_;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  bool fuse_unk_ = false;
  std::optional<int32_t> unk_id_;
  TokenMap vocab_;
  TokenMap whole_words_;  // only with ignore_merges: words (bytes, if byte-level) that are tokens
  std::array<int32_t, 256> byte_ids_{};      // byte-level: the token of each byte, -1 if none
  std::array<int32_t, 256> fallback_ids_{};  // "<0xHH>" tokens, -1 if none
  MergeTable merges_;
};

}  // namespace shoal
