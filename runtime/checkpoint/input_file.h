// InputFile: a regular file opened for reading at offsets. Reads are pread(), so a file that
// shrinks is an error and not a signal.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace shoal {

class InputFile {
 public:
  // Throws InvalidInput naming the path.
  static std::unique_ptr<InputFile> open(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  // Thread-safe. Throws InvalidInput when the file shrank or cannot be read.
  void read(uint64_t begin, uint64_t end, void* out) const;

 private:
  InputFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

}  // namespace shoal
