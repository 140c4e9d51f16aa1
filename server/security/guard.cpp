#include "server/security/guard.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "server/call_status.h"

namespace shoal {
namespace {

// Whoever tries keys must not fill the log.
constexpr std::chrono::seconds kLogInterval{10};
constexpr std::string_view kBearer = "Bearer ";
constexpr std::string_view kHealth = "/grpc.health.v1.Health/";

std::shared_ptr<const Client> anonymous() {
  static const auto client = std::make_shared<const Client>();
  return client;
}

// The holder of a certificate. Its name goes into logs and metrics, so one that is long or odd goes there as
// a hash; what it stands for is the whole name in any case.
std::shared_ptr<const Client> holder(const std::string& certificate) {
  constexpr size_t kMaxShown = 64;
  const auto client = make_client("cert", certificate);
  const bool plain = std::ranges::all_of(
      certificate, [](char c) { return c > ' ' && c < '\x7f' && c != '"' && c != '\\'; });
  if (!plain || certificate.size() > kMaxShown) {
    client->name = "cert-" + to_hex(sha256(bytes_of(certificate))).substr(0, 16);
  }
  return client;
}

}  // namespace

Guard::Guard(const GuardOptions& options)
    : keys_(options.api_key_file, options.api_key), open_health_(options.open_health) {}

std::shared_ptr<const Client> Guard::admit(std::string_view method, const Credentials& credentials) {
  if (!keys_.required()) {
    return credentials.certificate.empty() ? anonymous() : holder(credentials.certificate);
  }
  if (open_health_ && method.starts_with(kHealth)) return anonymous();
  // Two keys: a proxy may have added its own to a caller's, and which one counts would be a guess.
  std::string why = credentials.authorization.empty() ? "no key" : "more than one key";
  if (credentials.authorization.size() == 1) {
    const std::string_view value = credentials.authorization.front();
    if (value.starts_with(kBearer)) {
      const ApiKeys::Found found =
          keys_.find(value.substr(kBearer.size()), std::chrono::system_clock::now());
      if (found.client && !found.expired) return found.client;
      why = found.client ? "expired key of " + found.client->name : "unknown key";
    } else {
      why = "not a Bearer key";
    }
  }
  log_refusal(method, credentials, why);
  throw CallRefused(CallCode::kUnauthenticated,
                    "this server wants an API key that it knows: send one `authorization: Bearer KEY`");
}

void Guard::log_refusal(std::string_view method, const Credentials& credentials,
                        const std::string& why) {
  int64_t others;
  {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (now - last_log_ < kLogInterval && last_log_.time_since_epoch().count() != 0) {
      ++unlogged_;
      return;
    }
    last_log_ = now;
    others = std::exchange(unlogged_, 0);
  }
  spdlog::warn("Refused a call of {} from {}: {}{}", method.substr(0, 128), credentials.peer, why,
               others > 0 ? fmt::format(" (and {} others since the last such line)", others) : "");
}

}  // namespace shoal
