// A file of a page of the KV cache that somebody else may have written: it is no page and is refused, or it is the
// page that was saved.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "runtime/cache/kv_checkpoint.h"

namespace {

namespace fs = std::filesystem;
constexpr size_t kPageBytes = 64;

struct Folder {
  Folder() : path("/dev/shm/shoal-fuzz-" + std::to_string(getpid())) {
    fs::remove_all(path);
    directory = std::make_shared<shoal::KvCheckpointDirectory>(path, 0);
    key[0] = 7;
    for (size_t i = 0; i < kPageBytes; ++i) page.push_back(static_cast<std::byte>(3 * i));
    // The right file: what is fuzzed is the difference to it, byte by byte, or the whole file.
    shoal::KvCheckpoint checkpoint(directory, options());
    checkpoint.save(key, page.data());
    checkpoint.wait_idle();
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.path().extension() == ".kv") file = entry.path();
    }
    std::ifstream in(file, std::ios::binary);
    right.assign(std::istreambuf_iterator<char>(in), {});
    if (right.size() != static_cast<size_t>(shoal::KvCheckpoint::file_bytes(kPageBytes))) std::abort();
  }
  ~Folder() { fs::remove_all(path); }
  static shoal::KvCheckpoint::Options options() { return {.page_bytes = kPageBytes, .max_pages = 4}; }

  const std::string path;
  std::shared_ptr<shoal::KvCheckpointDirectory> directory;
  shoal::PageKey key{};
  std::vector<std::byte> page;
  fs::path file;
  std::string right;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Folder folder;
  std::string content(reinterpret_cast<const char*>(data), size);
  if (size > 0 && data[0] % 2 == 0) {
    content.erase(0, 1);
    std::string patched = folder.right;
    for (size_t i = 0; i < content.size() && i < patched.size(); ++i) patched[i] ^= content[i];
    content = patched;
  }
  std::ofstream(folder.file, std::ios::binary | std::ios::trunc) << content;
  shoal::KvCheckpoint checkpoint(folder.directory, Folder::options());
  std::vector<std::byte> read(kPageBytes);
  checkpoint.load(1, {{folder.key, read.data()}});
  checkpoint.wait_idle();
  const bool there = checkpoint.loaded(1) == 1;
  if (there != (content == folder.right)) std::abort();
  if (there && read != folder.page) std::abort();
  return 0;
}
