#include "server/security/caller.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "server/tracing/trace_context.h"

namespace shoal {
namespace {

constexpr size_t kMaxRequestId = 128;
constexpr size_t kMaxTraceparent = 110;  // 55, and room for what later versions add

std::string_view header(const grpc::ServerContextBase& context, const char* name) {
  const auto range = context.client_metadata().equal_range(name);
  // Twice: whose it is cannot be said.
  if (range.first == range.second || std::next(range.first) != range.second) return {};
  return {range.first->second.data(), range.first->second.size()};
}

bool printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c > ' ' && c < '\x7f'; });
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
  if (trace.size() <= kMaxTraceparent && printable(trace) && parse_traceparent(trace)) result.traceparent = trace;
  if (context.deadline() != std::chrono::system_clock::time_point::max()) {
    result.deadline = context.deadline();
  }
  return result;
}

}  // namespace shoal
