#include "runtime/cache/kv_checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "kernels/base/error.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'S', 'H', 'O', 'A', 'L', 'K', 'V', '1'};
constexpr const char* kSuffix = ".kv";
constexpr const char* kTemporary = ".part";
// Magic, identity, key, bytes of content, SHA-256 of it.
constexpr size_t kHeaderBytes = sizeof kMagic + 32 + 32 + 8 + 32;

class File {
 public:
  File(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  int fd() const { return fd_; }

  bool write(const std::byte* data, size_t size) {
    while (size > 0) {
      const ssize_t n = ::write(fd_, data, size);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      data += n;
      size -= static_cast<size_t>(n);
    }
    return true;
  }
  bool read(std::byte* data, size_t size) {
    while (size > 0) {
      const ssize_t n = ::read(fd_, data, size);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      data += n;
      size -= static_cast<size_t>(n);
    }
    return true;
  }

 private:
  int fd_;
};

std::string reason() { return std::strerror(errno); }

}  // namespace

KvCheckpointDirectory::KvCheckpointDirectory(const std::string& path, int rank) : path_(path) {
  if (!page_keys_supported()) {
    throw_invalid("--kv-checkpoint-dir {}: this build has no OpenSSL; build with libssl-dev", path);
  }
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw_invalid("--kv-checkpoint-dir {}: {}", path, error.message());
  const std::string lock = fmt::format("{}/lock-{}", path, rank);
  lock_ = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (lock_ < 0) throw_invalid("--kv-checkpoint-dir {}: {}", path, reason());
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int why = errno;
    close(lock_);
    if (why == EWOULDBLOCK) {
      throw_invalid("--kv-checkpoint-dir {}: another server uses it; give each server its own",
                    path);
    }
    throw_invalid("--kv-checkpoint-dir {}: cannot be locked: {}", path, std::strerror(why));
  }
}

KvCheckpointDirectory::~KvCheckpointDirectory() { close(lock_); }

KvCheckpoint::KvCheckpoint(std::shared_ptr<KvCheckpointDirectory> directory, const Options& options)
    : directory_(std::move(directory)),
      options_(options),
      folder_(directory_->path() + "/" + to_hex(options.identity).substr(0, 16)) {
  SHOAL_CHECK(options_.page_bytes > 0 && options_.max_pages >= 0);
  if (mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) {
    throw_invalid("--kv-checkpoint-dir {}: {}", folder_, reason());
  }
  find_files();
  thread_ = std::thread([this] { work(); });
}

KvCheckpoint::~KvCheckpoint() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

int64_t KvCheckpoint::file_bytes(size_t page_bytes) {
  return static_cast<int64_t>(kHeaderBytes + page_bytes);
}

void KvCheckpoint::find_files() {
  std::vector<std::pair<fs::file_time_type, PageKey>> pages;
  int64_t foreign = 0;
  std::error_code error;
  for (auto it = fs::directory_iterator(folder_, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    const fs::path path = it->path();
    if (path.extension() == kTemporary) {  // of a server that was killed while it wrote
      std::error_code ignored;
      fs::remove(path, ignored);
      continue;
    }
    std::error_code broken;  // another process may be at work here: whatever goes wrong is no page
    const std::optional<PageKey> key = from_hex(path.stem().string());
    const bool plain = it->symlink_status(broken).type() == fs::file_type::regular;
    const auto size = plain ? it->file_size(broken) : 0;
    const auto time = plain ? it->last_write_time(broken) : fs::file_time_type{};
    if (!key || path.extension() != kSuffix || broken ||
        static_cast<int64_t>(size) != file_bytes(options_.page_bytes)) {
      ++foreign;
      continue;
    }
    pages.emplace_back(time, *key);
  }
  if (error) throw_invalid("--kv-checkpoint-dir {}: {}", folder_, error.message());
  if (foreign > 0) {
    spdlog::warn("{}: {} files are no pages of this model and layout; ignored", folder_, foreign);
  }
  std::ranges::sort(pages);
  const auto surplus =
      std::max<int64_t>(static_cast<int64_t>(pages.size()) - options_.max_pages, 0);
  for (auto page = pages.begin(); page != pages.begin() + surplus; ++page) {
    unlink(file_of(page->second).c_str());
  }
  for (auto page = pages.begin() + surplus; page != pages.end(); ++page) {
    found_.push_back(page->second);
  }
}

void KvCheckpoint::queue(std::function<void()> task, size_t bytes) {
  const std::lock_guard lock(mutex_);
  tasks_.emplace_back(std::move(task), bytes);
  queued_bytes_ += bytes;
  changed_.notify_all();
}

void KvCheckpoint::save(const PageKey& key, const std::byte* page) {
  {
    const std::lock_guard lock(mutex_);
    if (!writable_ || queued_bytes_ + options_.page_bytes > options_.max_queued_bytes) {
      ++counters_.dropped;
      return;
    }
  }
  auto copy = std::make_shared<std::vector<std::byte>>(page, page + options_.page_bytes);
  queue([this, key, copy] { write(key, *copy); }, options_.page_bytes);
}

void KvCheckpoint::drop(const PageKey& key) {
  queue([this, key] { unlink(file_of(key).c_str()); }, 0);
}

void KvCheckpoint::load(uint64_t ticket, std::vector<Load> pages) {
  {
    const std::lock_guard lock(mutex_);
    loaded_[ticket] = -1;
  }
  auto shared = std::make_shared<std::vector<Load>>(std::move(pages));
  queue(
      [this, ticket, shared] {
        int64_t count = 0;
        while (count < static_cast<int64_t>(shared->size()) &&
               read((*shared)[count].key, (*shared)[count].to)) {
          ++count;
        }
        const std::lock_guard lock(mutex_);
        loaded_[ticket] = count;
        counters_.read += count;
      },
      0);
}

int64_t KvCheckpoint::loaded(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  loaded_.erase(loaded_.begin(), loaded_.lower_bound(ticket));
  const auto it = loaded_.find(ticket);
  return it == loaded_.end() ? -1 : it->second;
}

void KvCheckpoint::wait_idle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return tasks_.empty() && !busy_; });
}

KvCheckpoint::Counters KvCheckpoint::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

void KvCheckpoint::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return !tasks_.empty() || ending_; });
    if (tasks_.empty()) return;
    const auto [task, bytes] = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    lock.unlock();
    task();
    lock.lock();
    busy_ = false;
    queued_bytes_ -= bytes;
    changed_.notify_all();
  }
}

std::vector<std::byte> KvCheckpoint::header(const PageKey& key, const Sha256& content) const {
  std::vector<std::byte> bytes;
  const auto put = [&](const void* data, size_t size) {
    const auto* begin = static_cast<const std::byte*>(data);
    bytes.insert(bytes.end(), begin, begin + size);
  };
  const uint64_t size = options_.page_bytes;
  put(kMagic, sizeof kMagic);
  put(options_.identity.data(), options_.identity.size());
  put(key.data(), key.size());
  put(&size, sizeof size);
  put(content.data(), content.size());
  return bytes;
}

void KvCheckpoint::write(const PageKey& key, const std::vector<std::byte>& page) {
  if (write_failed_) return;
  const std::string file = file_of(key), temporary = folder_ + "/" + to_hex(key) + kTemporary;
  const std::vector<std::byte> head = header(key, sha256(page));
  bool ok;
  std::string why;
  {
    File out(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    ok =
        out.fd() >= 0 && out.write(head.data(), head.size()) && out.write(page.data(), page.size());
    if (!ok) why = reason();
  }
  if (ok && rename(temporary.c_str(), file.c_str()) != 0) {
    ok = false;
    why = reason();
  }
  const std::lock_guard lock(mutex_);
  if (ok) {
    ++counters_.written;
    return;
  }
  unlink(temporary.c_str());
  ++counters_.dropped;
  write_failed_ = true;
  writable_ = false;
  spdlog::warn("{}: {}; no more pages are kept there until the next start", folder_, why);
}

bool KvCheckpoint::read(const PageKey& key, std::byte* to) {
  const std::string path = file_of(key);
  File in(path, O_RDONLY | O_NOFOLLOW);
  if (in.fd() < 0) return false;  // never written, or removed since
  struct stat status;
  std::vector<std::byte> head(kHeaderBytes);
  if (fstat(in.fd(), &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_size != file_bytes(options_.page_bytes) || !in.read(head.data(), head.size()) ||
      !in.read(to, options_.page_bytes)) {
    refuse(path, "it has another size, or cannot be read");
    return false;
  }
  if (head != header(key, sha256({to, options_.page_bytes}))) {
    refuse(path, "it is damaged, or of another model or layout");
    return false;
  }
  futimens(in.fd(), nullptr);  // used now
  return true;
}

void KvCheckpoint::refuse(const std::string& file, const std::string& why) {
  if (!std::exchange(refused_, true)) {
    spdlog::warn("{} is not used: {}; it is removed, and so are others like it", file, why);
  }
  unlink(file.c_str());
  const std::lock_guard lock(mutex_);
  ++counters_.refused;
}

}  // namespace shoal
