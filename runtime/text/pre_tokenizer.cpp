#include "runtime/text/pre_tokenizer.h"

#include "kernels/base/error.h"
#include "runtime/text/json_input.h"
#include "runtime/text/unicode.h"

namespace shoal {
namespace {

constexpr int kMaxSequenceDepth = 8;
constexpr size_t kMaxSteps = 64;  // DeepSeek-V2, the longest in use, has 6

// The pattern of ByteLevel with use_regex, from GPT-2.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& json) {
  if (!json.is_null()) add_steps(json, "pre_tokenizer", 0);
}

void PreTokenizer::add_steps(const nlohmann::json& json, const std::string& where, int depth) {
  const JsonObject object(json, where);
  const std::string type = object.require_string("type");
  if (steps_.size() >= kMaxSteps || depth > kMaxSequenceDepth) {
    throw_invalid("{}: more than {} steps, or nested deeper than {}", where, kMaxSteps,
                  kMaxSequenceDepth);
  }
  if (type == "Sequence") {
    const auto& members = object.require_array("pretokenizers");
    for (size_t i = 0; i < members.size(); ++i) {
      add_steps(members[i], fmt::format("{}.pretokenizers[{}]", where, i), depth + 1);
    }
    return;
  }
  // After ByteLevel the pieces are letters of the byte alphabet; no published file cuts those
  // again.
  if (byte_level_) throw_invalid("{}: {} after ByteLevel is not supported", where, type);
  if (type == "Split") {
    add_split(json, where);
  } else if (type == "Digits") {
    Step step;
    step.digits = true;
    step.behavior =
        object.find_bool("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous;
    steps_.push_back(std::move(step));
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    Step step;
    step.prefix_space = object.find_bool("add_prefix_space", true);
    step.splits = object.find_bool("use_regex", true);
    if (step.splits) step.regex = std::make_shared<const Regex>(kByteLevelPattern, where);
    if (step.splits || step.prefix_space) steps_.push_back(std::move(step));
  } else {
    throw_invalid("{}: type {} is not supported (supported: Sequence, Split, Digits, ByteLevel)",
                  where, type);
  }
}

void PreTokenizer::add_split(const nlohmann::json& json, const std::string& where) {
  const JsonObject object(json, where);
  Step step;
  step.invert = object.find_bool("invert", false);
  const std::string behavior = object.require_string("behavior");
  if (behavior == "Removed") {
    step.behavior = Behavior::kRemoved;
  } else if (behavior == "Isolated") {
    step.behavior = Behavior::kIsolated;
  } else if (behavior == "MergedWithPrevious") {
    step.behavior = Behavior::kMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    step.behavior = Behavior::kMergedWithNext;
  } else if (behavior == "Contiguous") {
    step.behavior = Behavior::kContiguous;
  } else {
    throw_invalid("{}: behavior {} is not supported", where, behavior);
  }
  const JsonObject pattern(object.require("pattern"), object.path("pattern"));
  if (const auto regex = pattern.find_string("Regex")) {
    step.regex = std::make_shared<const Regex>(*regex, pattern.where());
  } else if (auto literal = pattern.find_string("String")) {
    step.literal = *std::move(literal);
    step.splits = !step.literal.empty();  // an empty string matches nowhere
  } else {
    throw_invalid("{}: neither Regex nor String", pattern.where());
  }
  if (step.splits || step.invert) steps_.push_back(std::move(step));
}

bool PreTokenizer::find_next(const Step& step, std::string_view text, size_t start,
                             RegexScratch* scratch, RegexMatch* match) {
  if (!step.splits) return false;
  if (step.regex) return step.regex->find(text, start, scratch, match);
  if (!step.digits) {
    const size_t at = text.find(step.literal, start);
    if (at == std::string_view::npos) return false;
    *match = {at, at + step.literal.size()};
    return true;
  }
  while (start < text.size()) {
    const Utf8Step character = decode_utf8(text.substr(start));
    if (is_numeric(character.code_point)) {
      *match = {start, start + character.length};
      return true;
    }
    start += character.length;
  }
  return false;
}

void PreTokenizer::run_step(const Step& step, std::string_view piece,
                            PreTokenizerScratch* scratch) {
  if (step.prefix_space && piece.front() != ' ') {
    piece = scratch->prefixed_.emplace_back(" " + std::string(piece));
  }
  const auto emit = [&](size_t begin, size_t end) {
    if (begin < end) scratch->next_.push_back(piece.substr(begin, end - begin));
  };
  size_t open_begin = 0;      // start of the piece being built (merging behaviors)
  bool open_matched = false;  // whether the last part of it was a match
  bool any = false;
  const auto part = [&](size_t begin, size_t end, bool matched) {
    matched = matched != step.invert;
    switch (step.behavior) {
      case Behavior::kIsolated:
        emit(begin, end);
        return;
      case Behavior::kRemoved:
        if (!matched) emit(begin, end);
        return;
      case Behavior::kContiguous:
        if (any && matched != open_matched) {
          emit(open_begin, begin);
          open_begin = begin;
        }
        break;
      case Behavior::kMergedWithPrevious:
        // A match joins the unmatched part before it; two matches in a row stay apart.
        if (any && (!matched || open_matched)) {
          emit(open_begin, begin);
          open_begin = begin;
        }
        break;
      case Behavior::kMergedWithNext:
        if (any && (matched || !open_matched)) {
          emit(open_begin, begin);
          open_begin = begin;
        }
        break;
    }
    any = true;
    open_matched = matched;
  };

  size_t previous_end = 0;
  size_t position = 0;
  bool last_was_match_end = false;
  RegexMatch match;
  while (position <= piece.size() && find_next(step, piece, position, &scratch->regex_, &match)) {
    const bool empty = match.begin == match.end;
    if (empty && last_was_match_end && match.begin == previous_end) {
      // An empty match right after a match does not count (as in Oniguruma's and Rust's iterators).
      if (position >= piece.size()) break;
      position += decode_utf8(piece.substr(position)).length;
      last_was_match_end = false;
      continue;
    }
    if (previous_end != match.begin) part(previous_end, match.begin, false);
    part(match.begin, match.end, true);
    previous_end = match.end;
    last_was_match_end = true;
    position = match.end;
    if (empty) {
      if (position >= piece.size()) break;
      position += decode_utf8(piece.substr(position)).length;
    }
  }
  if (previous_end != piece.size()) part(previous_end, piece.size(), false);
  if (any) emit(open_begin, piece.size());
}

const std::vector<std::string_view>& PreTokenizer::split(std::string_view text,
                                                         PreTokenizerScratch* scratch) const {
  scratch->pieces_.clear();
  if (!text.empty()) scratch->pieces_.push_back(text);
  for (const Step& step : steps_) {
    scratch->next_.clear();
    for (const std::string_view piece : scratch->pieces_) run_step(step, piece, scratch);
    scratch->pieces_.swap(scratch->next_);
  }
  return scratch->pieces_;
}

}  // namespace shoal
