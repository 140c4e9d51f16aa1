#include "runtime/quantization/model_output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

// What says that a folder was begun and is not finished.
constexpr const char* kJournal = "shoal-quantize.json";
constexpr const char* kPartial = ".partial";
constexpr uint64_t kMaxJournalBytes = uint64_t{16} << 20;

// FNV-1a over words of 8 bytes: tells a damaged shard from a whole one, no more.
class Hash {
 public:
  void add(std::span<const std::byte> bytes) {
    size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + i, 8);
      mix(word);
    }
    uint64_t rest = bytes.size() - i;
    for (; i < bytes.size(); ++i) rest = rest << 8 | static_cast<uint64_t>(bytes[i]);
    mix(rest);
  }
  uint64_t value() const { return hash_; }

 private:
  void mix(uint64_t word) { hash_ = (hash_ ^ word) * 0x100000001b3u; }
  uint64_t hash_ = 0xcbf29ce484222325u;
};

// A file that is removed unless it was kept.
class NewFile {
 public:
  explicit NewFile(std::string path) : path_(std::move(path)) {
    fd_ = open((path_ + kPartial).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) fail();
  }
  ~NewFile() {
    if (fd_ < 0) return;
    close(fd_);
    unlink((path_ + kPartial).c_str());
  }
  NewFile(const NewFile&) = delete;
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), std::min<size_t>(bytes.size(), 1u << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail();
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
  }
  void keep() {
    if (fsync(fd_) != 0) fail();
    const int fd = std::exchange(fd_, -1);
    if (close(fd) != 0 || rename((path_ + kPartial).c_str(), path_.c_str()) != 0) {
      const int error = errno;
      unlink((path_ + kPartial).c_str());
      errno = error;
      fail();
    }
  }

 private:
  [[noreturn]] void fail() const { throw_invalid("{}: {}", path_, std::strerror(errno)); }
  const std::string path_;
  int fd_ = -1;
};

std::string header_of(const std::vector<OutputTensor>& tensors) {
  nlohmann::ordered_json json = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t at = 0;
  for (const OutputTensor& tensor : tensors) {
    json[tensor.name] = {{"dtype", tensor.type},
                         {"shape", tensor.shape},
                         {"data_offsets", {at, at + tensor.bytes}}};
    at += tensor.bytes;
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string header(8, '\0');
  for (int i = 0; i < 8; ++i) header[i] = static_cast<char>(text.size() >> (8 * i));
  return header + text;
}

uint64_t data_bytes(const std::vector<OutputTensor>& tensors) {
  uint64_t bytes = 0;
  for (const OutputTensor& tensor : tensors) bytes += tensor.bytes;
  return bytes;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

}  // namespace

ModelOutput::ModelOutput(const std::string& dir, const std::string& input,
                         const std::string& recipe)
    : recipe_(recipe) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) throw_invalid("--output {}: {}", dir, error.message());
  dir_ = fs::canonical(dir, error).string();
  if (error) throw_invalid("--output {}: {}", dir, error.message());
  if (fs::equivalent(dir_, input, error)) {
    throw_invalid("--output {}: it is the model itself; give another folder", dir);
  }
  if (path_exists(path(kJournal))) {
    const nlohmann::json json =
        parse_strict_json(read_small_file(path(kJournal), kMaxJournalBytes), path(kJournal));
    if (!json.is_object() || json.value("recipe", "") != recipe_ || !json["finished"].is_object()) {
      throw_invalid("--output {}: begun from another model or with other flags; give another folder",
                    dir);
    }
    for (const auto& [name, hash] : json["finished"].items()) {
      if (hash.is_number_unsigned()) finished_[name] = hash.get<uint64_t>();
    }
    return;
  }
  if (!fs::is_empty(dir_, error)) {
    throw_invalid("--output {}: {}", dir, error ? error.message() : "not empty; give another folder");
  }
  save_journal();
}

bool ModelOutput::finished(const std::string& name,
                           const std::vector<OutputTensor>& tensors) const {
  const auto known = finished_.find(name);
  if (known == finished_.end()) return false;
  const std::string header = header_of(tensors);
  const int fd = open(path(name).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  Hash hash;
  uint64_t total = 0;
  bool same = true;
  std::vector<std::byte> piece(uint64_t{8} << 20);
  while (same) {
    // Whole pieces, as write_shard() hashes them.
    size_t have = 0;
    ssize_t n = 1;
    while (have < piece.size() && (n = read(fd, piece.data() + have, piece.size() - have)) > 0) {
      have += static_cast<size_t>(n);
    }
    if (total == 0) {
      same = have >= header.size() && std::memcmp(piece.data(), header.data(), header.size()) == 0;
    }
    hash.add({piece.data(), have});
    total += have;
    if (have < piece.size()) break;
  }
  close(fd);
  return same && total == header.size() + data_bytes(tensors) && hash.value() == known->second;
}

void ModelOutput::write_shard(const std::string& name, const std::vector<OutputTensor>& tensors,
                              const std::function<void(const Write&)>& fill) {
  NewFile file(path(name));
  Hash hash;
  uint64_t total = 0;
  std::vector<std::byte> pending;  // to be hashed in the pieces that finished() reads
  const size_t piece = size_t{8} << 20;
  const auto write = [&](std::span<const std::byte> bytes) {
    file.write(bytes);
    total += bytes.size();
    while (!bytes.empty()) {
      const size_t some = std::min(bytes.size(), piece - pending.size());
      pending.insert(pending.end(), bytes.begin(), bytes.begin() + static_cast<int64_t>(some));
      bytes = bytes.subspan(some);
      if (pending.size() < piece) continue;
      hash.add(pending);
      pending.clear();
    }
  };
  const std::string header = header_of(tensors);
  write(bytes_of(header));
  fill(write);
  hash.add(pending);
  SHOAL_CHECK(total == header.size() + data_bytes(tensors), "{}: {} bytes written, {} planned", name,
              total, header.size() + data_bytes(tensors));
  file.keep();
  finished_[name] = hash.value();
  save_journal();
}

void ModelOutput::write_text(const std::string& name, const std::string& text) {
  NewFile file(path(name));
  file.write(bytes_of(text));
  file.keep();
}

void ModelOutput::copy_file(const std::string& from, const std::string& name) {
  // Tokenizers, templates and licences: the largest published tokenizer.json has some 20 MB.
  constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
  write_text(name, read_small_file(from, kMaxFileBytes));
}

void ModelOutput::finish(const std::string& config_json) {
  write_text("config.json", config_json);
  if (unlink(path(kJournal).c_str()) != 0) {
    throw_invalid("{}: {}", path(kJournal), std::strerror(errno));
  }
}

void ModelOutput::save_journal() const {
  NewFile file(path(kJournal));
  const nlohmann::json json = {{"recipe", recipe_}, {"finished", finished_}};
  file.write(bytes_of(json.dump(2)));
  file.keep();
}

}  // namespace shoal
