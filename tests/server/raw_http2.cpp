#include "tests/server/raw_http2.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zlib.h>

#include <catch2/catch.hpp>
#include <chrono>

namespace shoal {
namespace {

std::string big_endian(uint32_t value, int bytes) {
  std::string text;
  for (int i = bytes - 1; i >= 0; --i) text += static_cast<char>(value >> (8 * i));
  return text;
}

// HPACK: a number of 7 bits and more.
std::string length(size_t value) {
  if (value < 127) return std::string(1, static_cast<char>(value));
  std::string text(1, '\x7f');
  for (value -= 127; value >= 128; value /= 128) text += static_cast<char>(value % 128 + 128);
  return text + static_cast<char>(value);
}

// HPACK: literal, not indexed, new name.
std::string header(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + length(name.size()) + name + length(value.size()) + value;
}

}  // namespace

RawConnection::RawConnection(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
}

RawConnection::~RawConnection() { close(fd_); }

bool RawConnection::send(const std::string& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += static_cast<size_t>(n);
  }
  return true;
}

bool RawConnection::wait_for(const std::string& text, int seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::string seen;
  while (seen.find(text) == std::string::npos) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    pollfd wait{fd_, POLLIN, 0};
    if (poll(&wait, 1, 100) <= 0) continue;
    char buffer[4096];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    seen.append(buffer, static_cast<size_t>(n));
  }
  return true;
}

bool RawConnection::closed(int seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (std::chrono::steady_clock::now() < deadline) {
    pollfd wait{fd_, POLLIN, 0};
    if (poll(&wait, 1, 100) <= 0) continue;
    char buffer[4096];
    if (recv(fd_, buffer, sizeof buffer, 0) <= 0) return true;
  }
  return false;
}

bool RawConnection::frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  return send(big_endian(static_cast<uint32_t>(payload.size()), 3) + static_cast<char>(type) +
              static_cast<char>(flags) + big_endian(stream, 4) + payload);
}

void RawConnection::begin() {
  send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  frame(4, 0, 0, "");
}

bool RawConnection::headers(uint32_t stream, const std::string& path, const Headers& more) {
  std::string block = header(":method", "POST") + header(":scheme", "http") + header(":path", path) +
                      header(":authority", "test") + header("content-type", "application/grpc") +
                      header("te", "trailers");
  for (const auto& [name, value] : more) block += header(name, value);
  return frame(1, 4, stream, block);
}

bool RawConnection::data(uint32_t stream, const std::string& bytes, bool end) {
  return frame(0, end ? 1 : 0, stream, bytes);
}

bool RawConnection::reset(uint32_t stream) { return frame(3, 0, stream, big_endian(8, 4)); }

bool RawConnection::ping() { return frame(6, 0, 0, std::string(8, 'p')); }

std::string grpc_frame(const std::string& message, bool compressed) {
  return std::string(1, compressed ? '\1' : '\0') +
         big_endian(static_cast<uint32_t>(message.size()), 4) + message;
}

std::string gzip_zeros(size_t bytes) {
  z_stream z{};
  deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY);
  const std::string zeros(1 << 20, '\0');
  std::string out;
  for (size_t done = 0; done < bytes; done += zeros.size()) {
    z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(zeros.data()));
    z.avail_in = static_cast<uInt>(zeros.size());
    const int flush = done + zeros.size() >= bytes ? Z_FINISH : Z_NO_FLUSH;
    do {
      char buffer[64 << 10];
      z.next_out = reinterpret_cast<Bytef*>(buffer);
      z.avail_out = sizeof buffer;
      deflate(&z, flush);
      out.append(buffer, sizeof buffer - z.avail_out);
    } while (z.avail_out == 0);
  }
  deflateEnd(&z);
  return out;
}

}  // namespace shoal
