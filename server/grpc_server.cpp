#include "server/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/service_type.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "kernels/base/error.h"
#include "server/inference_service.h"

namespace shoal {
namespace {

// Dead clients are found after 30 + 10 s instead of when TCP gives up; pings of clients (smg: every
// 30 s, also when idle) must not count as abuse.
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinPingIntervalMs = 10'000;
// gRPC 1.51 closes the whole connection, other calls included, above its limit of 8 KiB.
constexpr int kMaxMetadataBytes = 64 << 10;
// Token ids take up to 5 bytes on the wire; text seldom more than 8 bytes a token, and JSON around
// it.
constexpr int64_t kMessageBytesPerToken = 16;

void quiet_grpc_log(gpr_log_func_args* args) { spdlog::debug("gRPC: {}", args->message); }

std::string bracketed(const std::string& host) {
  return host.find(':') != std::string::npos && host[0] != '[' ? "[" + host + "]" : host;
}

// gRPC does not say why it could not listen: try it ourselves.
std::string why_not_listening(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  if (const int rc = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list)) {
    return gai_strerror(rc);
  }
  std::string reason = "unknown reason";
  const int fd = socket(list->ai_family, list->ai_socktype, list->ai_protocol);
  const int on = 1;
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, 1) != 0) {
    reason = std::strerror(errno);
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(list);
  return reason;
}

}  // namespace

GrpcServer::GrpcServer(const GrpcServerOptions& options, FrontEnd& front_end)
    : service_(make_inference_service(front_end, options.api_key)) {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function(&quiet_grpc_log);
    grpc::EnableDefaultHealthCheckService(true);
  });
  grpc::ServerBuilder builder;
  if (options.api_key.empty()) {
    static std::once_flag reflection;
    std::call_once(reflection, [] { grpc::reflection::InitProtoReflectionServerBuilderPlugin(); });
  }
  int port = 0;
  builder.AddListeningPort(fmt::format("{}:{}", bracketed(options.host), options.port),
                           grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service_.get());
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server must fail, not share
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    throw_invalid("cannot listen on {}:{}: {}", options.host, options.port,
                  why_not_listening(options.host, options.port));
  }
  set_serving(false);
  address_ = fmt::format("{}:{}", bracketed(options.host), port);
}

GrpcServer::~GrpcServer() { shutdown(std::chrono::milliseconds(0)); }

void GrpcServer::set_serving(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus(serving);  // every service known so far, "" among them
  health->SetServingStatus("", serving);
  health->SetServingStatus("shoal.v1.Inference", serving);
}

void GrpcServer::shutdown(std::chrono::milliseconds timeout) {
  server_->Shutdown(std::chrono::system_clock::now() + timeout);
  server_->Wait();
}

size_t max_message_bytes(int64_t context_tokens) {
  constexpr int64_t kFloor = int64_t{4} << 20, kCeiling = int64_t{256} << 20;
  return static_cast<size_t>(std::clamp(context_tokens * kMessageBytesPerToken, kFloor, kCeiling));
}

}  // namespace shoal
