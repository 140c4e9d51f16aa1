#include "server/security/small_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"

namespace shoal {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

}  // namespace

FileStamp stamp_of(const std::string& path) {
  struct stat s;
  if (stat(path.c_str(), &s) != 0) return {};
  return {int64_t{s.st_mtim.tv_sec} * 1'000'000'000 + s.st_mtim.tv_nsec, int64_t{s.st_size},
          uint64_t{s.st_ino}, uint64_t{s.st_dev}};
}

std::string read_small_file(const char* flag, const std::string& path, size_t max_bytes) {
  // A pipe without a writer must not stop the start.
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw_invalid("{} {}: {}", flag, path, std::strerror(errno));
  struct stat s;
  if (fstat(file.fd, &s) != 0 || !S_ISREG(s.st_mode)) throw_invalid("{} {}: not a file", flag, path);
  std::string text;
  char buffer[16 << 10];
  for (;;) {
    const ssize_t n = read(file.fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_invalid("{} {}: {}", flag, path, std::strerror(errno));
    if (n == 0) break;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > max_bytes) {
      throw_invalid("{} {}: more than {} bytes; such a file is smaller", flag, path, max_bytes);
    }
  }
  if (text.empty()) throw_invalid("{} {}: the file is empty", flag, path);
  return text;
}

}  // namespace shoal
