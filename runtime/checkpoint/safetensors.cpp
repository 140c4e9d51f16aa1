#include "runtime/checkpoint/safetensors.h"

#include <cstring>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// The bound of the reference implementation.
constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;

}  // namespace

std::unique_ptr<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(InputFile::open(path)));
  const uint64_t size = file->file_->size();
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

}  // namespace shoal
