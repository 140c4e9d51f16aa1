#include "server/metrics/http_endpoint.h"

#include <fmt/format.h>
#include <httplib.h>

#include <thread>
#include <utility>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// A scraper and a probe or two at a time; each connection holds a thread until it is idle for a second.
constexpr size_t kThreads = 4;
constexpr time_t kIdleSeconds = 1, kReadSeconds = 2, kWriteSeconds = 5;

}  // namespace

class HttpEndpoint::Impl {
 public:
  explicit Impl(Handlers handlers) : handlers_(std::move(handlers)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };  // httplib deletes it
    server_.set_keep_alive_timeout(kIdleSeconds);
    server_.set_read_timeout(kReadSeconds);
    server_.set_write_timeout(kWriteSeconds);
    server_.set_payload_max_length(0);
    // Not httplib's own, which let a second server share the port.
    server_.set_socket_options([](socket_t socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    });
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(handlers_.metrics(), "text/plain; version=0.0.4; charset=utf-8");
    });
    server_.Get("/health", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("live\n", "text/plain");
    });
    server_.Get("/ready", [this](const httplib::Request&, httplib::Response& response) {
      std::string why = "ready";
      if (!handlers_.ready(&why)) response.status = 503;
      response.set_content(why + "\n", "text/plain");
    });
  }
  ~Impl() {
    if (!thread_.joinable()) return;
    server_.stop();
    thread_.join();
  }

  int listen(const std::string& host, int port) {
    const int bound = port == 0                         ? server_.bind_to_any_port(host)
                      : server_.bind_to_port(host, port) ? port
                                                         : -1;
    if (bound <= 0) {
      throw_invalid("--metrics-port {}: cannot listen on {}:{}; is the port in use?", port, host, port);
    }
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();  // stop() before that would be lost
    return bound;
  }

 private:
  const Handlers handlers_;
  httplib::Server server_;
  std::thread thread_;
};

HttpEndpoint::HttpEndpoint(const std::string& host, int port, Handlers handlers)
    : impl_(std::make_unique<Impl>(std::move(handlers))) {
  address_ = fmt::format("{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]",
                         impl_->listen(host, port));
}
HttpEndpoint::~HttpEndpoint() = default;

}  // namespace shoal
