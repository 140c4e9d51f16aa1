// Messages between the front end and rank 0: refused as a Bug, or the same after another turn over the wire. The
// first byte says which message follows.
#include <cstdlib>
#include <string>

#include "kernels/base/error.h"
#include "server/engine_wire.h"

namespace {

namespace pb = shoal::engine::v1;

void require(bool condition) {
  if (!condition) std::abort();
}

template <typename Message>
std::string bytes_of(const Message& message) {
  return message.SerializeAsString();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 2 == 0) {
      pb::ToEngine message;
      if (!message.ParseFromString(bytes) || !message.has_submit()) return 0;
      const shoal::Request request = shoal::from_message(message.submit());
      const shoal::Request again = shoal::from_message(shoal::to_message(request));
      require(request.id == again.id && request.tokens == again.tokens && request.client == again.client);
      require(request.sampling.logit_bias.size() == again.sampling.logit_bias.size());
      require(request.cache_salt == again.cache_salt);
    } else {
      pb::FromEngine message;
      if (!message.ParseFromString(bytes)) return 0;
      for (const pb::TokenEvent& event : message.tokens().events()) {
        pb::TokenEvent once, twice;
        shoal::to_message(shoal::from_message(event), &once);
        shoal::to_message(shoal::from_message(once), &twice);
        require(bytes_of(once) == bytes_of(twice));
      }
      shoal::EngineStatus status;
      shoal::update(status, message.stats());
      shoal::update(status, message.ready());
    }
  } catch (const shoal::Bug&) {
  }
  return 0;
}
