// Files that say what to ask, and when. From outside: checked line by line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

// One line of a trace: {"timestamp": seconds, "input_len": tokens, "output_len": tokens};
// input_length and output_length are read too. Other fields are ignored.
struct TraceEntry {
  double timestamp = 0;  // from the first line's
  int32_t input_len = 0, output_len = 0;
};
// A JSONL file, in the order of its timestamps. Throws InvalidInput naming file and line.
std::vector<TraceEntry> read_trace(const std::string& path);
std::vector<TraceEntry> parse_trace(const std::string& text, const std::string& source);

// A conversation of a ShareGPT file: questions of the "human" and the answers that followed.
struct SharedConversation {
  struct Exchange {
    std::string question, answer;
  };
  std::vector<Exchange> exchanges;  // at least one
};
// The JSON list of {"conversations": [{"from": "human" | "gpt", "value": text}, ...]} ("user" and
// "assistant" are read too). What does not begin with a question and an answer is left out. Throws
// InvalidInput naming the file when nothing is left.
std::vector<SharedConversation> read_sharegpt(const std::string& path);
std::vector<SharedConversation> parse_sharegpt(const std::string& text, const std::string& source);

}  // namespace shoal
