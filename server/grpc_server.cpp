#include "server/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <mutex>

#include "kernels/base/error.h"
#include "server/inference_service.h"
#include "server/rpc/guarded_service.h"
#include "server/rpc/health_service.h"
#include "server/rpc/listener.h"
#include "server/rpc/reflection_service.h"
#include "server/security/tls_credentials.h"

namespace shoal {
namespace {

// Dead clients are found after 30 + 10 s instead of when TCP gives up; pings of clients (smg: every
// 30 s, also when idle) must not count as abuse.
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinPingIntervalMs = 10'000;
// Of TLS and of HTTP/2's first frames: a connection that says nothing is closed.
constexpr int kHandshakeTimeoutMs = 20'000;
// gRPC 1.51 closes the whole connection, other calls included, above its limit of 8 KiB.
constexpr int kMaxMetadataBytes = 64 << 10;
// Token ids take up to 5 bytes on the wire; text seldom more than 8 bytes a token, and JSON around
// it.
constexpr int64_t kMessageBytesPerToken = 16;

void quiet_grpc_log(gpr_log_func_args* args) { spdlog::debug("gRPC: {}", args->message); }

std::string bracketed(const std::string& host) {
  return host.find(':') != std::string::npos && host[0] != '[' ? "[" + host + "]" : host;
}

}  // namespace

GrpcServer::GrpcServer(const GrpcServerOptions& options, FrontEnd& front_end,
                       std::vector<std::unique_ptr<RpcService>> more)
    : guard_(std::make_unique<Guard>(options.guard)), services_(std::move(more)) {
  static std::once_flag once;
  std::call_once(once, [] { gpr_set_log_function(&quiet_grpc_log); });
  if (options.tls.enabled()) tls_ = std::make_shared<TlsFiles>(options.tls);
  listener_ = std::make_unique<Listener>(options.host, options.port);
  credentials_ = tls_ ? tls_credentials(tls_) : grpc::InsecureServerCredentials();

  services_.push_back(make_inference_service(front_end));
  auto health = std::make_unique<HealthService>();
  health_ = health.get();
  services_.push_back(std::move(health));
  std::vector<std::string> names = {"grpc.reflection.v1.ServerReflection",
                                    "grpc.reflection.v1alpha.ServerReflection"};
  for (const auto& service : services_) names.push_back(service->name());
  services_.push_back(std::make_unique<ReflectionService>("v1", names));
  services_.push_back(std::make_unique<ReflectionService>("v1alpha", names));
  std::vector<RpcService*> all;
  for (const auto& service : services_) all.push_back(service.get());
  handler_ = std::make_unique<GuardedService>(*guard_, all);
  set_serving(false);

  grpc::ServerBuilder builder;
  using Acceptor = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  acceptor_ =
      builder.experimental().AddExternalConnectionAcceptor(Acceptor::FROM_FD, credentials_);
  builder.RegisterCallbackGenericService(handler_.get());
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  // gRPC bounds what arrives, not what it becomes when it is unpacked: 4 MiB of gzip are 4 GiB.
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  grpc::ResourceQuota quota("shoal");
  quota.Resize(std::max(options.memory_bytes, 4 * options.max_message_bytes));
  builder.SetResourceQuota(quota);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams);
  if (options.max_connection_age.count() > 0) {
    const auto age = std::chrono::milliseconds(options.max_connection_age).count();
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, static_cast<int>(age));
  }
  server_ = builder.BuildAndStart();
  SHOAL_CHECK(server_ != nullptr, "gRPC does not start");
  listener_->start([this](int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    acceptor_->HandleNewConnection(&connection);
  });
  address_ = fmt::format("{}:{}", bracketed(options.host), listener_->port());
}

GrpcServer::~GrpcServer() { shutdown(std::chrono::milliseconds(0)); }

bool GrpcServer::open() const {
  return guard_->open() && (tls_ == nullptr || !tls_->wants_client_certificates());
}

void GrpcServer::set_serving(bool serving) {
  health_->set("", serving);
  for (const auto& service : services_) {
    if (service.get() != health_) health_->set(service->name(), serving);
  }
}

void GrpcServer::reload_if_changed() {
  guard_->reload_if_changed();
  if (tls_) tls_->reload_if_changed();
}

void GrpcServer::reload() {
  guard_->reload();
  if (tls_) tls_->reload();
}

void GrpcServer::shutdown(std::chrono::milliseconds timeout) {
  listener_->stop();
  health_->end();  // whoever watches would be waited for until the timeout
  server_->Shutdown(std::chrono::system_clock::now() + timeout);
  server_->Wait();
}

size_t max_message_bytes(int64_t context_tokens) {
  constexpr int64_t kFloor = int64_t{4} << 20, kCeiling = int64_t{256} << 20;
  return static_cast<size_t>(std::clamp(context_tokens * kMessageBytesPerToken, kFloor, kCeiling));
}

}  // namespace shoal
