// The listening gRPC server: shoal.v1.Inference, grpc.health.v1 for "" and "shoal.v1.Inference",
// reflection (v1 and v1alpha), and what else is given; all of them behind the guard. Construction binds, so
// that a port in use is known before a model is loaded. Thread-safe.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "server/front_end.h"
#include "server/rpc/rpc_service.h"
#include "server/security/guard.h"
#include "server/security/tls_files.h"

namespace grpc {
class Server;
class ServerCredentials;
namespace experimental {
class ExternalConnectionAcceptor;
}
}  // namespace grpc

namespace shoal {

class GuardedService;
class HealthService;
class Listener;

struct GrpcServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free one
  GuardOptions guard = {};
  TlsPaths tls = {};
  size_t max_message_bytes = size_t{4} << 20;
  int max_streams = 4096;            // of one connection
  size_t memory_bytes = size_t{1} << 30;  // of all connections, for what is on its way in or out
  std::chrono::seconds max_connection_age{0};  // then the client is asked to connect anew; 0: never
};

class GrpcServer {
 public:
  // Health says NOT_SERVING until set_serving(true). Throws InvalidInput when it cannot listen, or for keys
  // and certificates that are not right. `front_end` must outlive it.
  GrpcServer(const GrpcServerOptions& options, FrontEnd& front_end,
             std::vector<std::unique_ptr<RpcService>> more = {});
  ~GrpcServer();  // shutdown at once

  const std::string& address() const { return address_; }  // host:port in fact
  // Whether everybody who reaches the port may call.
  bool open() const;
  void set_serving(bool serving);
  // Keys and certificates again from their files: where these have changed, or anyway.
  void reload_if_changed();
  void reload();
  // Takes no new calls, lets running ones finish until the timeout, then cancels them. Returns when
  // all are done.
  void shutdown(std::chrono::milliseconds timeout);

 private:
  std::unique_ptr<Guard> guard_;
  std::shared_ptr<TlsFiles> tls_;                          // null: plain text
  std::shared_ptr<grpc::ServerCredentials> credentials_;  // must outlive the server
  std::vector<std::unique_ptr<RpcService>> services_;
  HealthService* health_ = nullptr;  // one of services_
  std::unique_ptr<GuardedService> handler_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Listener> listener_;
  std::string address_;
};

// The largest request that a context of so many tokens can need: no less than gRPC's own default.
size_t max_message_bytes(int64_t context_tokens);

}  // namespace shoal
