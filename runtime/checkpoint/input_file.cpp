#include "runtime/checkpoint/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"

namespace shoal {

// Linux transfers at most 0x7ffff000 bytes per call; smaller pieces keep signals deliverable.
constexpr uint64_t kMaxReadBytes = uint64_t{1} << 30;

std::unique_ptr<InputFile> InputFile::open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw_invalid("{}: {}", path, std::strerror(errno));
  std::unique_ptr<InputFile> file(new InputFile(path, fd));
  struct stat status {};
  if (fstat(fd, &status) != 0) throw_invalid("{}: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw_invalid("{}: not a regular file", path);
  file->size_ = static_cast<uint64_t>(status.st_size);
  return file;
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read(uint64_t begin, uint64_t end, void* out) const {
  auto* target = static_cast<std::byte*>(out);
  while (begin < end) {
    const ssize_t n =
        pread(fd_, target, std::min(end - begin, kMaxReadBytes), static_cast<off_t>(begin));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_invalid("{}: reading at byte {}: {}", path_, begin, std::strerror(errno));
    if (n == 0) throw_invalid("{}: the file shrank: nothing at byte {}", path_, begin);
    target += n;
    begin += static_cast<uint64_t>(n);
  }
}

}  // namespace shoal
