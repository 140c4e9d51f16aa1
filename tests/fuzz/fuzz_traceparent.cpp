// The `traceparent` header of W3C: nothing, or ids of the right form.
#include <cstdlib>

#include "server/tracing/trace_context.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto context = shoal::parse_traceparent({reinterpret_cast<const char*>(data), size});
  if (!context) return 0;
  const auto check = [](const std::string& id, size_t digits) {
    if (id.size() != digits || id.find_first_not_of("0123456789abcdef") != id.npos) std::abort();
    if (id.find_first_not_of('0') == id.npos) std::abort();
  };
  check(context->trace_id, 32);
  check(context->parent_id, 16);
  return 0;
}
