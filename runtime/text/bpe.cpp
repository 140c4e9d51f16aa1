#include "runtime/text/bpe.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/json_input.h"
#include "runtime/text/unicode.h"

namespace shoal {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

void refuse_unless_empty(const JsonObject& model, const char* key) {
  const auto text = model.find_string(key);
  if (text && !text->empty()) {
    throw_invalid("{} = \"{}\" is not supported (should be empty)", model.path(key), *text);
  }
}

}  // namespace

void MergeTable::reserve(size_t count) {
  // At most half full, so that a look-up of a pair that does not merge (most are) ends at once.
  const size_t size = std::bit_ceil(std::max<size_t>(count * 2, 16));
  slots_.assign(size, Slot{});
  shift_ = 64 - std::countr_zero(size);
}

size_t MergeTable::slot_of(uint64_t key) const {
  // Fibonacci hashing: the high bits of a product with 2^64 / golden ratio.
  return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> shift_);
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = pair_key(left, right);
  size_t slot = slot_of(key);
  while (slots_[slot].key != kEmpty && slots_[slot].key != key) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  slots_[slot] = {key, merge};
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  size_t slot = slot_of(key);
  while (slots_[slot].key != kEmpty) {
    if (slots_[slot].key == key) return &slots_[slot].merge;
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return nullptr;
}

BpeModel::BpeModel(const nlohmann::json& json, bool byte_level) : byte_level_(byte_level) {
  const JsonObject model(json, "model");
  // Old files of GPT-2 style leave the type out.
  if (const auto type = model.find_string("type"); type && *type != "BPE") {
    throw_invalid("model.type = {} is not supported (supported: BPE)", *type);
  }
  if (const auto* dropout = model.find("dropout")) {
    if (!dropout->is_number() || dropout->get<double>() != 0) {
      throw_invalid("model.dropout = {} is not supported (should be null)", dropout->dump());
    }
  }
  refuse_unless_empty(model, "continuing_subword_prefix");
  refuse_unless_empty(model, "end_of_word_suffix");
  byte_fallback_ = model.find_bool("byte_fallback", false);
  ignore_merges_ = model.find_bool("ignore_merges", false);
  fuse_unk_ = model.find_bool("fuse_unk", false);

  load_vocab(model.require("vocab"));
  if (const auto unk = model.find_string("unk_token")) {
    unk_id_ = token_to_id(*unk);
    if (!unk_id_) throw_invalid("model.unk_token \"{}\" is not in model.vocab", *unk);
  }
  load_merges(model.require_array("merges"));
}

void BpeModel::load_vocab(const nlohmann::json& json) {
  if (!json.is_object()) {
    throw_invalid("model.vocab is {}, should be an object", json.type_name());
  }
  vocab_.reserve(json.size());
  for (const auto& [token, id] : json.items()) {
    vocab_.emplace(token, require_token_id(id, "model.vocab[\"" + token + "\"]"));
  }
  if (ignore_merges_) {
    whole_words_.reserve(vocab_.size());
    for (const auto& [token, id] : vocab_) {
      if (!byte_level_) {
        whole_words_.emplace(token, id);
      } else if (auto bytes = alphabet_to_bytes(token)) {
        whole_words_.emplace(*std::move(bytes), id);
      }
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto index = static_cast<size_t>(byte);
    byte_ids_[index] = token_to_id(byte_to_alphabet(static_cast<uint8_t>(byte))).value_or(-1);
    fallback_ids_[index] = token_to_id(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
}

void BpeModel::load_merges(const nlohmann::json& json) {
  merges_.reserve(json.size());
  std::string joined;
  for (size_t i = 0; i < json.size(); ++i) {
    const nlohmann::json& merge = json[i];
    std::string_view left, right;
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        throw_invalid("model.merges[{}] = \"{}\" is not two tokens with one space between", i,
                      text);
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    } else {
      throw_invalid("model.merges[{}] is neither \"a b\" nor [\"a\", \"b\"]", i);
    }
    joined.assign(left);
    joined += right;
    const auto id_of = [&](std::string_view token) {
      const auto id = token_to_id(token);
      if (!id) {
        throw_invalid("model.merges[{}] needs the token \"{}\", which is not in model.vocab", i,
                      token);
      }
      return *id;
    };
    const int32_t left_id = id_of(left);
    const int32_t right_id = id_of(right);
    merges_.insert(left_id, right_id, {static_cast<uint32_t>(i), id_of(joined)});
  }
}

std::optional<int32_t> BpeModel::token_to_id(std::string_view token) const {
  const auto it = vocab_.find(token);
  if (it == vocab_.end()) return std::nullopt;
  return it->second;
}

void BpeModel::append_symbol(int32_t id, BpeScratch* scratch) const {
  auto& symbols = scratch->symbols_;
  const auto index = static_cast<int32_t>(symbols.size());
  if (index > 0) symbols.back().next = index;
  symbols.push_back({id, index - 1, -1, false});
}

void BpeModel::append_character(std::string_view character, bool* unknown,
                                BpeScratch* scratch) const {
  // The order of the cases, and that fallback bytes do not end a run of unknown characters, are
  // those of Hugging Face tokenizers.
  if (const auto id = token_to_id(character)) {
    if (*unknown) append_symbol(*unk_id_, scratch);
    *unknown = false;
    append_symbol(*id, scratch);
    return;
  }
  const auto fallback = [&](char c) { return fallback_ids_[static_cast<uint8_t>(c)]; };
  if (byte_fallback_ &&
      std::all_of(character.begin(), character.end(), [&](char c) { return fallback(c) >= 0; })) {
    for (const char c : character) append_symbol(fallback(c), scratch);
    return;
  }
  if (!unk_id_) return;  // dropped, as Hugging Face does
  if (*unknown && !fuse_unk_) append_symbol(*unk_id_, scratch);
  *unknown = true;
}

void BpeModel::push_candidate(int32_t left, int32_t right, BpeScratch* scratch) const {
  const auto& symbols = scratch->symbols_;
  const auto* merge =
      merges_.find(symbols[static_cast<size_t>(left)].id, symbols[static_cast<size_t>(right)].id);
  if (merge == nullptr) return;
  scratch->heap_.push_back(
      {(static_cast<uint64_t>(merge->rank) << 32) | static_cast<uint32_t>(left), merge->result});
  std::push_heap(scratch->heap_.begin(), scratch->heap_.end());
}

void BpeModel::merge_symbols(BpeScratch* scratch) const {
  auto& symbols = scratch->symbols_;
  auto& heap = scratch->heap_;
  heap.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    push_candidate(static_cast<int32_t>(i), static_cast<int32_t>(i + 1), scratch);
  }
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const BpeScratch::Candidate candidate = heap.back();
    heap.pop_back();
    const auto position = static_cast<int32_t>(candidate.order & 0xFFFFFFFFu);
    auto& left = symbols[static_cast<size_t>(position)];
    if (left.merged_away || left.next < 0) continue;
    auto& right = symbols[static_cast<size_t>(left.next)];
    // A neighbour may have merged since this candidate was made. Like Hugging Face, a candidate
    // counts as current when the pair that stands there now gives the same token.
    const auto* current = merges_.find(left.id, right.id);
    if (current == nullptr || current->result != candidate.result) continue;
    left.id = candidate.result;
    right.merged_away = true;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = position;
    if (left.previous >= 0) push_candidate(left.previous, position, scratch);
    if (left.next >= 0) push_candidate(position, left.next, scratch);
  }
}

void BpeModel::encode(std::string_view word, BpeScratch* scratch, std::vector<int32_t>* ids) const {
  // Positions are kept in 32 bits; a fallback or alphabet character may give up to 4 symbols.
  if (word.size() > std::numeric_limits<int32_t>::max() / 4) {
    throw_invalid("text of {} bytes without a break is too long to tokenize", word.size());
  }
  if (ignore_merges_) {
    if (const auto it = whole_words_.find(word); it != whole_words_.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  scratch->symbols_.clear();
  bool unknown = false;
  if (byte_level_) {
    for (const char c : word) {
      const auto byte = static_cast<uint8_t>(c);
      if (byte_ids_[byte] >= 0 && !unknown) {
        append_symbol(byte_ids_[byte], scratch);
      } else {
        append_character(byte_to_alphabet(byte), &unknown, scratch);
      }
    }
  } else {
    while (!word.empty()) {
      const Utf8Step step = decode_utf8(word);
      append_character(word.substr(0, step.length), &unknown, scratch);
      word.remove_prefix(step.length);
    }
  }
  if (unknown) append_symbol(*unk_id_, scratch);

  merge_symbols(scratch);
  for (const auto& symbol : scratch->symbols_) {
    if (!symbol.merged_away) ids->push_back(symbol.id);
  }
}

}  // namespace shoal
