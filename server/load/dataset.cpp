#include "server/load/dataset.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

// The published ShareGPT file has 670 MB.
constexpr uint64_t kMaxFileBytes = uint64_t{4} << 30;
// No context is longer.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

int32_t tokens_of(const Json& line, const char* name, const char* other, const std::string& where) {
  const auto it = line.contains(name) ? line.find(name) : line.find(other);
  if (it == line.end() || !it->is_number_integer() || it->get<int64_t>() < 1 ||
      it->get<int64_t>() > kMaxTokens) {
    throw_invalid("{}: \"{}\" should be a number of tokens from 1 to {}", where, name, kMaxTokens);
  }
  return it->get<int32_t>();
}

bool is_one_of(const Json& message, std::initializer_list<const char*> roles) {
  if (!message.is_object()) return false;
  const auto from = message.find("from");
  if (from == message.end() || !from->is_string()) return false;
  return std::any_of(roles.begin(), roles.end(), [&](const char* role) { return *from == role; });
}

std::string value_of(const Json& message) {
  const auto value = message.find("value");
  return value != message.end() && value->is_string() ? value->get<std::string>() : "";
}

}  // namespace

std::vector<TraceEntry> parse_trace(const std::string& text, const std::string& source) {
  std::vector<TraceEntry> trace;
  std::istringstream lines(text);
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}, line {}", source, number);
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) throw_invalid("{}: should be a JSON object", where);
    const auto timestamp = json.find("timestamp");
    if (timestamp == json.end() || !timestamp->is_number() ||
        !std::isfinite(timestamp->get<double>())) {
      throw_invalid("{}: \"timestamp\" should be a number of seconds", where);
    }
    trace.push_back({timestamp->get<double>(), tokens_of(json, "input_len", "input_length", where),
                     tokens_of(json, "output_len", "output_length", where)});
  }
  if (trace.empty()) throw_invalid("{}: holds no request", source);
  std::stable_sort(trace.begin(), trace.end(), [](const TraceEntry& a, const TraceEntry& b) {
    return a.timestamp < b.timestamp;
  });
  const double first = trace.front().timestamp;
  for (TraceEntry& entry : trace) entry.timestamp -= first;
  return trace;
}

std::vector<TraceEntry> read_trace(const std::string& path) {
  return parse_trace(read_small_file(path, kMaxFileBytes), path);
}

std::vector<SharedConversation> parse_sharegpt(const std::string& text, const std::string& source) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) throw_invalid("{}: should be a JSON list of conversations", source);
  std::vector<SharedConversation> all;
  for (const Json& entry : json) {
    if (!entry.is_object()) continue;
    const auto messages = entry.find("conversations");
    if (messages == entry.end() || !messages->is_array()) continue;
    SharedConversation conversation;
    for (size_t i = 0; i + 1 < messages->size(); i += 2) {
      const Json &question = (*messages)[i], &answer = (*messages)[i + 1];
      if (!is_one_of(question, {"human", "user"}) || !is_one_of(answer, {"gpt", "assistant"}))
        break;
      SharedConversation::Exchange exchange{value_of(question), value_of(answer)};
      if (exchange.question.empty() || exchange.answer.empty()) break;
      conversation.exchanges.push_back(std::move(exchange));
    }
    if (!conversation.exchanges.empty()) all.push_back(std::move(conversation));
  }
  if (all.empty()) throw_invalid("{}: no conversation of a human's question and an answer", source);
  return all;
}

std::vector<SharedConversation> read_sharegpt(const std::string& path) {
  return parse_sharegpt(read_small_file(path, kMaxFileBytes), path);
}

}  // namespace shoal
