// The listening gRPC server: shoal.v1.Inference, grpc.health.v1 for "" and "shoal.v1.Inference",
// and reflection. Construction binds, so that a port in use is known before a model is loaded.
// Thread-safe.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "server/front_end.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace shoal {

struct GrpcServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;         // 0: any free one
  std::string api_key;  // with a key there is no reflection: it could not ask for the key
  size_t max_message_bytes = size_t{4} << 20;
  int max_streams = 4096;  // of one connection
};

class GrpcServer {
 public:
  // Health says NOT_SERVING until set_serving(true). Throws InvalidInput when it cannot listen.
  // `front_end` must outlive it.
  GrpcServer(const GrpcServerOptions& options, FrontEnd& front_end);
  ~GrpcServer();  // shutdown at once

  const std::string& address() const { return address_; }  // host:port in fact
  void set_serving(bool serving);
  // Takes no new calls, lets running ones finish until the timeout, then cancels them. Returns when
  // all are done.
  void shutdown(std::chrono::milliseconds timeout);

 private:
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// The largest request that a context of so many tokens can need: no less than gRPC's own default.
size_t max_message_bytes(int64_t context_tokens);

}  // namespace shoal
