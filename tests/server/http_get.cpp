#include "tests/server/http_get.h"

#include <httplib.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace shoal {

HttpAnswer http_get(const std::string& address, const std::string& path) {
  httplib::Client client("http://" + address);
  const httplib::Result result = client.Get(path);
  if (!result) return {};
  return {result->status, result->body, result->get_header_value("Content-Type")};
}

int http_post(const std::string& address, const std::string& path, const std::string& body) {
  httplib::Client client("http://" + address);
  const httplib::Result result = client.Post(path, body, "text/plain");
  return result ? result->status : 0;
}

class HttpReceiver::Impl {
 public:
  explicit Impl(int answer) {
    server.Post(".*", [this, answer](const httplib::Request& request, httplib::Response& response) {
      const std::lock_guard lock(mutex);
      posts.push_back({request.path, request.get_header_value("Content-Type"), request.body});
      response.status = answer;
      changed.notify_all();
    });
    port = server.bind_to_any_port("127.0.0.1");
    thread = std::thread([this] { server.listen_after_bind(); });
    while (!server.is_running()) std::this_thread::yield();
  }
  ~Impl() {
    server.stop();
    thread.join();
  }

  httplib::Server server;
  int port = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Post> posts;
  std::thread thread;
};

HttpReceiver::HttpReceiver(int answer) : impl_(std::make_unique<Impl>(answer)) {}
HttpReceiver::~HttpReceiver() = default;
int HttpReceiver::port() const { return impl_->port; }
std::vector<HttpReceiver::Post> HttpReceiver::posts() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->posts;
}
bool HttpReceiver::wait_for(size_t posts) const {
  std::unique_lock lock(impl_->mutex);
  return impl_->changed.wait_for(lock, std::chrono::seconds(10),
                                 [&] { return impl_->posts.size() >= posts; });
}

}  // namespace shoal
