#include "server/security/caller.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

namespace shoal {
namespace {

constexpr size_t kMaxRequestId = 128;

std::string_view header(const grpc::ServerContextBase& context, const char* name) {
  const auto range = context.client_metadata().equal_range(name);
  // Twice: whose it is cannot be said.
  if (range.first == range.second || std::next(range.first) != range.second) return {};
  return {range.first->second.data(), range.first->second.size()};
}

bool printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c > ' ' && c < '\x7f'; });
}

bool is_hex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// W3C Trace Context, level 1: 00-TRACE-PARENT-FLAGS, and neither id all zeros; later versions may go on
// behind it.
bool is_traceparent(std::string_view text) {
  constexpr size_t kLength = 55;
  if (text.size() < kLength || text.size() > 2 * kLength) return false;
  const std::string_view version = text.substr(0, 2), trace = text.substr(3, 32);
  const std::string_view parent = text.substr(36, 16), flags = text.substr(53, 2);
  if (text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
  if (!is_hex(version) || !is_hex(trace) || !is_hex(parent) || !is_hex(flags)) return false;
  if (version == "ff" || (version == "00" && text.size() != kLength)) return false;
  if (text.size() > kLength && text[kLength] != '-') return false;
  return trace.find_first_not_of('0') != std::string_view::npos &&
         parent.find_first_not_of('0') != std::string_view::npos && printable(text);
}

}  // namespace

Credentials credentials_of(const grpc::ServerContextBase& context) {
  Credentials credentials;
  const auto range = context.client_metadata().equal_range("authorization");
  for (auto it = range.first; it != range.second; ++it) {
    credentials.authorization.emplace_back(it->second.data(), it->second.size());
  }
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth != nullptr && auth->IsPeerAuthenticated()) {
    const std::vector<grpc::string_ref> names = auth->GetPeerIdentity();
    if (!names.empty()) credentials.certificate.assign(names.front().data(), names.front().size());
  }
  credentials.peer = context.peer();
  return credentials;
}

CallContext context_of(const grpc::ServerContextBase& context) {
  CallContext result;
  const std::string_view id = header(context, "x-request-id");
  if (id.size() <= kMaxRequestId && printable(id)) result.request_id = id;
  const std::string_view trace = header(context, "traceparent");
  if (is_traceparent(trace)) result.traceparent = trace;
  if (context.deadline() != std::chrono::system_clock::time_point::max()) {
    result.deadline = context.deadline();
  }
  return result;
}

}  // namespace shoal
