// HTTP for tests. httplib's header is long: it is behind this one.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace shoal {

struct HttpAnswer {
  int status = 0;  // 0: no answer
  std::string body, content_type;
};
HttpAnswer http_get(const std::string& address, const std::string& path);
int http_post(const std::string& address, const std::string& path, const std::string& body);

// A server that takes POSTs on loopback and keeps what came.
class HttpReceiver {
 public:
  struct Post {
    std::string path, content_type, body;
  };
  explicit HttpReceiver(int answer = 200);
  ~HttpReceiver();
  int port() const;
  std::vector<Post> posts() const;
  // Waits, at most ten seconds, until so many have come.
  bool wait_for(size_t posts) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
