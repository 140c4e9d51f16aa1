// Files that `shoal bench serve` replays: a trace (JSONL) and ShareGPT conversations (JSON).
#include <cmath>
#include <cstdlib>
#include <string>

#include "kernels/base/error.h"
#include "server/load/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    double last = 0;
    for (const shoal::TraceEntry& entry : shoal::parse_trace(text, "fuzz")) {
      if (!(entry.timestamp >= last) || std::isinf(entry.timestamp)) std::abort();
      if (entry.input_len < 0 || entry.output_len < 0) std::abort();
      last = entry.timestamp;
    }
  } catch (const shoal::InvalidInput&) {
  }
  try {
    for (const shoal::SharedConversation& conversation : shoal::parse_sharegpt(text, "fuzz")) {
      if (conversation.exchanges.empty()) std::abort();
    }
  } catch (const shoal::InvalidInput&) {
  }
  return 0;
}
