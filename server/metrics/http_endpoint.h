// HttpEndpoint: /metrics, /health and /ready over HTTP/1.1, for Prometheus and for probes that speak no
// gRPC. GET only, no request bodies, few connections at a time, short time limits. No authentication:
// it is off by default and listens where the operator says.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace shoal {

class HttpEndpoint {
 public:
  struct Handlers {
    std::function<std::string()> metrics;
    // Whether calls are taken; the text says why not.
    std::function<bool(std::string* why)> ready;
  };
  // Listens and answers on threads of its own. port 0: any free one. Throws InvalidInput when it cannot.
  HttpEndpoint(const std::string& host, int port, Handlers handlers);
  ~HttpEndpoint();
  const std::string& address() const { return address_; }  // host:port in fact

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

}  // namespace shoal
