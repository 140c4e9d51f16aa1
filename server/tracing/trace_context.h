// W3C trace context (https://www.w3.org/TR/trace-context/): the `traceparent` that comes with a call.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace shoal {

struct TraceContext {
  std::string trace_id;   // 32 lower-case hex digits, not all 0
  std::string parent_id;  // 16 of those: the caller's span
  bool sampled = false;   // whether the caller records this trace
};

// Nothing for what the standard does not allow; versions after 00 are read as 00, as it asks.
std::optional<TraceContext> parse_traceparent(std::string_view text);

// `digits` random lower-case hex digits, not all 0; at most 32.
std::string random_hex(int digits);

}  // namespace shoal
