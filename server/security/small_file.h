// Files that decide who may call: keys and certificates. Read whole, and looked at again for changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace shoal {

// Tells one state of a file from another, also where a link is moved to another file (Kubernetes' secrets).
struct FileStamp {
  int64_t changed_ns = 0, bytes = -1;
  uint64_t inode = 0, device = 0;
  bool operator==(const FileStamp&) const = default;
};
FileStamp stamp_of(const std::string& path);  // bytes = -1: there is none

// The content of `path`, 1 to max_bytes bytes. Throws InvalidInput, naming `flag`, when it is missing,
// unreadable, empty, too large or no file.
std::string read_small_file(const char* flag, const std::string& path, size_t max_bytes);

}  // namespace shoal
