// A file of API keys: refused with a line number and without what it holds, or every key has a client with limits that
// can be kept.
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "kernels/base/error.h"
#include "server/security/api_keys.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    for (const shoal::ApiKey& key : shoal::parse_api_keys("fuzz", text)) {
      const shoal::Client& c = *key.client;
      if (c.name.empty() || c.max_sequences < 0 || !(c.requests_per_second >= 0) || !(c.burst >= 0)) std::abort();
      if (std::isinf(c.requests_per_second) || std::isinf(c.burst) || std::abs(c.best_priority) > 100) std::abort();
    }
  } catch (const shoal::InvalidInput& error) {
    const std::string_view message = error.what();
    if (message.size() > 2000 || message.find('\n') != message.npos) std::abort();
  }
  return 0;
}
