#include "server/rpc/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Not for connections: files, pipes to ranks, the metrics port.
constexpr rlim_t kReserve = 64;
// When there is nothing left to take a connection with.
constexpr int kRestMs = 100;
constexpr std::chrono::seconds kLogInterval{10};
// Unacknowledged for so long, a connection is dead; as gRPC sets on its own sockets.
constexpr int kUserTimeoutMs = 10'000;

rlim_t descriptor_limit() {
  rlimit limit{};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int port_of(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

void set_port(sockaddr* address, int port) {
  const auto value = htons(static_cast<uint16_t>(port));
  if (address->sa_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = value;
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = value;
  }
}

// -1, and errno, when it cannot be.
int listen_on(const addrinfo& address) {
  const int fd =
      socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, address.ai_protocol);
  if (fd < 0) return -1;
  const int on = 1, timeout = kUserTimeoutMs;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  // Connections have these from the socket that they come in by.
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
  if (address.ai_family == AF_INET6) {
    // "::" is every address of both kinds.
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address.ai_addr);
    const int only = IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr) ? 0 : 1;
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
  }
  if (bind(fd, address.ai_addr, address.ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace

Listener::Listener(const std::string& host, int port) : port_(port) {
  raise_descriptor_limit();
  const bool brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string name = brackets ? host.substr(1, host.size() - 2) : host;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  if (const int rc = getaddrinfo(name.c_str(), std::to_string(port).c_str(), &hints, &list)) {
    throw_invalid("cannot listen on {}:{}: {}", host, port, gai_strerror(rc));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
  int error = 0;
  for (addrinfo* a = list; a != nullptr; a = a->ai_next) {
    if (a->ai_family != AF_INET && a->ai_family != AF_INET6) continue;
    set_port(a->ai_addr, port_);
    const int fd = listen_on(*a);
    if (fd < 0) {
      // localhost may stand for an address of a kind that this machine has not.
      if (error == 0 || errno == EADDRINUSE) error = errno;
      continue;
    }
    sockets_.push_back(fd);
    port_ = port_of(fd);
  }
  wake_ = eventfd(0, EFD_CLOEXEC);
  if (sockets_.empty() || error == EADDRINUSE || wake_ < 0) {
    if (wake_ < 0) error = errno;
    stop();
    throw_invalid("cannot listen on {}:{}: {}", host, port,
                  error != 0 ? std::strerror(error) : "it stands for no address");
  }
}

Listener::~Listener() { stop(); }

void Listener::start(std::function<void(int fd)> take) {
  thread_ = std::thread([this, take = std::move(take)] { run(take); });
}

void Listener::stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
    thread_.join();
  }
  for (const int fd : sockets_) close(fd);
  sockets_.clear();
  if (wake_ >= 0) close(wake_);
  wake_ = -1;
}

void Listener::log_now_and_then(const char* what) {
  const auto now = std::chrono::steady_clock::now();
  if (last_log_.time_since_epoch().count() != 0 && now - last_log_ < kLogInterval) return;
  last_log_ = now;
  spdlog::warn("{}; the limit of file descriptors is {}", what, descriptor_limit());
}

void Listener::run(const std::function<void(int fd)>& take) {
  std::vector<pollfd> waits = {{wake_, POLLIN, 0}};
  for (const int fd : sockets_) waits.push_back({fd, POLLIN, 0});
  for (;;) {
    if (poll(waits.data(), waits.size(), -1) < 0) continue;
    if (waits[0].revents != 0) return;
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents == 0 || take_one(waits[i].fd, take)) continue;
      poll(waits.data(), 1, kRestMs);  // or until the end
    }
  }
}

// False: there is nothing to take a connection with; the connection waits.
bool Listener::take_one(int listening, const std::function<void(int fd)>& take) {
  const int fd = accept4(listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) {
    const bool exhausted = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    if (exhausted) log_now_and_then("Connections wait: there are no file descriptors");
    return !exhausted;  // what else there is, is that connection's own failure
  }
  // The lowest free number is given, so all below it are in use.
  if (static_cast<rlim_t>(fd) + kReserve >= descriptor_limit()) {
    log_now_and_then("Connections are refused: there are too many");
    close(fd);
    return true;
  }
  take(fd);
  return true;
}

}  // namespace shoal
