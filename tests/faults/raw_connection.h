// A TCP connection on which a test sends what no client library would: bytes, or HTTP/2 frames of its own making.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace shoal {

// Frame types of RFC 9113, section 6.
enum class FrameType : uint8_t {
  kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kGoAway = 7, kWindowUpdate = 8
};

struct Frame {
  FrameType type;
  uint8_t flags = 0;
  uint32_t stream = 0;
  std::string payload;
};
inline constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4;

class RawConnection {
 public:
  // To 127.0.0.1. Throws std::runtime_error when it cannot connect.
  explicit RawConnection(int port);
  ~RawConnection();
  RawConnection(const RawConnection&) = delete;

  // False when the other side has closed.
  bool send(const std::string& bytes);
  // What comes within the time, up to `most` bytes; empty when nothing did.
  std::string receive(double seconds, size_t most = 1 << 16);
  // Reads until the other side closes; false when it has not within the time.
  bool closes_within(double seconds);

  // HTTP/2: preface and settings {identifier, value}.
  bool start(const std::vector<std::pair<uint16_t, uint32_t>>& settings = {});
  bool send(const Frame& frame);
  // A gRPC request on the next stream; returns the stream. `message` is framed for gRPC, unless empty.
  uint32_t request(const std::string& path, const std::string& message,
                   const std::vector<std::pair<std::string, std::string>>& headers = {},
                   bool end_stream = true);
  // The next frame; settings and pings are answered on the way when `polite`.
  std::optional<Frame> read_frame(double seconds, bool polite = true);
  // Everything of HEADERS and DATA on a stream until its end, or until the time is over.
  std::string read_stream(uint32_t stream, double seconds);

 private:
  int fd_ = -1;
  std::string buffer_;
  uint32_t next_stream_ = 1;
};

// A length-prefixed message of gRPC.
std::string grpc_message(const std::string& message, bool compressed = false);

}  // namespace shoal
