#include "tests/faults/raw_connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <stdexcept>

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

std::string big_endian(uint32_t value, int bytes) {
  std::string out;
  for (int i = bytes - 1; i >= 0; --i) out += static_cast<char>(value >> (8 * i));
  return out;
}

// RFC 7541, 5.1 and 5.2, without Huffman.
std::string hpack_string(const std::string& text) {
  std::string out;
  size_t length = text.size();
  if (length < 127) {
    out += static_cast<char>(length);
  } else {
    out += '\x7f';
    for (length -= 127; length >= 128; length >>= 7) out += static_cast<char>(0x80 | (length & 0x7f));
    out += static_cast<char>(length);
  }
  return out + text;
}

// Literal without indexing, new name (6.2.2).
std::string hpack(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + hpack_string(name) + hpack_string(value);
}

}  // namespace

std::string grpc_message(const std::string& message, bool compressed) {
  return std::string(1, compressed ? '\1' : '\0') + big_endian(static_cast<uint32_t>(message.size()), 4) + message;
}

RawConnection::RawConnection(int port) {
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd_ < 0 || connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    if (fd_ >= 0) close(fd_);
    throw std::runtime_error("cannot connect: errno " + std::to_string(error));
  }
}

RawConnection::~RawConnection() { close(fd_); }

bool RawConnection::send(const std::string& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    sent += static_cast<size_t>(n);
  }
  return true;
}

std::string RawConnection::receive(double seconds, size_t most) {
  pollfd entry{fd_, POLLIN, 0};
  if (poll(&entry, 1, static_cast<int>(1000 * seconds)) <= 0) return "";
  std::string bytes(most, '\0');
  const ssize_t n = recv(fd_, bytes.data(), most, 0);
  bytes.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return bytes;
}

bool RawConnection::closes_within(double seconds) {
  const auto end = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
  char bytes[4096];
  while (Clock::now() < end) {
    pollfd entry{fd_, POLLIN, 0};
    if (poll(&entry, 1, 100) <= 0) continue;
    const ssize_t n = recv(fd_, bytes, sizeof bytes, 0);
    if (n == 0 || (n < 0 && errno != EINTR)) return true;
  }
  return false;
}

bool RawConnection::start(const std::vector<std::pair<uint16_t, uint32_t>>& settings) {
  std::string payload;
  for (const auto& [identifier, value] : settings) payload += big_endian(identifier, 2) + big_endian(value, 4);
  return send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") && send(Frame{.type = FrameType::kSettings, .payload = payload});
}

bool RawConnection::send(const Frame& frame) {
  return send(big_endian(static_cast<uint32_t>(frame.payload.size()), 3) + static_cast<char>(frame.type) +
              static_cast<char>(frame.flags) + big_endian(frame.stream, 4) + frame.payload);
}

uint32_t RawConnection::request(const std::string& path, const std::string& message,
                                const std::vector<std::pair<std::string, std::string>>& headers,
                                bool end_stream) {
  const uint32_t stream = next_stream_;
  next_stream_ += 2;
  std::string block = hpack(":method", "POST") + hpack(":scheme", "http") + hpack(":path", path) +
                      hpack(":authority", "localhost") + hpack("te", "trailers") +
                      hpack("content-type", "application/grpc");
  for (const auto& [name, value] : headers) block += hpack(name, value);
  send(Frame{.type = FrameType::kHeaders, .flags = kEndHeaders, .stream = stream, .payload = block});
  constexpr size_t kLargestFrame = 16384;
  const std::string data = message.empty() ? "" : grpc_message(message);
  for (size_t at = 0; at < data.size() || (at == 0 && end_stream); at += kLargestFrame) {
    const bool last = at + kLargestFrame >= data.size();
    send(Frame{.type = FrameType::kData,
               .flags = last && end_stream ? kEndStream : uint8_t{0},
               .stream = stream,
               .payload = data.substr(std::min(at, data.size()), kLargestFrame)});
    if (data.empty()) break;
  }
  return stream;
}

std::optional<Frame> RawConnection::read_frame(double seconds, bool polite) {
  const auto end = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
  while (true) {
    constexpr size_t kHeader = 9;
    if (buffer_.size() >= kHeader) {
      const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(buffer_[i])); };
      const size_t length = byte(0) << 16 | byte(1) << 8 | byte(2);
      if (buffer_.size() >= kHeader + length) {
        Frame frame{.type = static_cast<FrameType>(byte(3)),
                    .flags = static_cast<uint8_t>(byte(4)),
                    .stream = byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8),
                    .payload = buffer_.substr(kHeader, length)};
        buffer_.erase(0, kHeader + length);
        if (polite && frame.type == FrameType::kSettings && (frame.flags & kAck) == 0) {
          send(Frame{.type = FrameType::kSettings, .flags = kAck});
        }
        if (polite && frame.type == FrameType::kPing && (frame.flags & kAck) == 0) {
          send(Frame{.type = FrameType::kPing, .flags = kAck, .payload = frame.payload});
        }
        return frame;
      }
    }
    const double left = std::chrono::duration<double>(end - Clock::now()).count();
    if (left <= 0) return std::nullopt;
    const std::string more = receive(left);
    if (more.empty()) return std::nullopt;
    buffer_ += more;
  }
}

std::string RawConnection::read_stream(uint32_t stream, double seconds) {
  const auto end = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
  std::string all;
  while (Clock::now() < end) {
    const auto frame = read_frame(std::chrono::duration<double>(end - Clock::now()).count());
    if (!frame) break;
    if (frame->stream != stream) continue;
    all += frame->payload;
    if (frame->type == FrameType::kReset) break;
    const bool carries_end = frame->type == FrameType::kData || frame->type == FrameType::kHeaders;
    if (carries_end && (frame->flags & kEndStream) != 0) break;
  }
  return all;
}

}  // namespace shoal
