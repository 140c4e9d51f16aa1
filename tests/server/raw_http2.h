// A client that speaks HTTP/2 by hand, for what no gRPC client would send.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace shoal {

class RawConnection {
 public:
  explicit RawConnection(const std::string& address);  // host:port, IPv4
  ~RawConnection();
  RawConnection(const RawConnection&) = delete;

  // False: the server has closed.
  bool send(const std::string& bytes);
  // Reads until `text` has come; false when the server closes or `seconds` pass first.
  bool wait_for(const std::string& text, int seconds = 10);
  bool closed(int seconds);  // whether the server closes within that time

  using Headers = std::vector<std::pair<std::string, std::string>>;
  void begin();  // preface and settings
  bool headers(uint32_t stream, const std::string& path, const Headers& more);
  bool data(uint32_t stream, const std::string& bytes, bool end);
  bool reset(uint32_t stream);
  bool ping();

 private:
  bool frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload);
  int fd_ = -1;
};

// A message as gRPC frames it.
std::string grpc_frame(const std::string& message, bool compressed);
// gzip of so many zero bytes.
std::string gzip_zeros(size_t bytes);

}  // namespace shoal
