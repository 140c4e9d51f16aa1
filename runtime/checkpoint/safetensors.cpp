#include "runtime/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// The bound of the reference implementation.
constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;
// Linux transfers at most 0x7ffff000 bytes per call; smaller pieces keep signals deliverable.
constexpr uint64_t kMaxReadBytes = uint64_t{1} << 30;

}  // namespace

std::unique_ptr<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw_invalid("{}: {}", path, std::strerror(errno));
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, fd));
  struct stat status {};
  if (fstat(fd, &status) != 0) throw_invalid("{}: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw_invalid("{}: not a regular file", path);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size < 8) throw_invalid("{}: {} bytes are too few for a safetensors file", path, size);

  unsigned char prefix[8];
  file->read(0, 8, prefix);
  if (std::memcmp(prefix, "version ", 8) == 0) {
    throw_invalid("{}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`", path);
  }
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | prefix[i];
  if (header_bytes > size - 8) {
    throw_invalid("{}: a header of {} bytes in a file of {}: truncated, or not a safetensors file",
                  path, header_bytes, size);
  }
  if (header_bytes > kMaxHeaderBytes) {
    throw_invalid("{}: a header of {} bytes, more than the {} allowed", path, header_bytes,
                  kMaxHeaderBytes);
  }
  std::string header(header_bytes, '\0');
  file->read(8, 8 + header_bytes, header.data());
  file->tensors_ = parse_safetensors_header(header, size, path);
  return file;
}

SafetensorsFile::~SafetensorsFile() { ::close(fd_); }

void SafetensorsFile::read(uint64_t begin, uint64_t end, void* out) const {
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
