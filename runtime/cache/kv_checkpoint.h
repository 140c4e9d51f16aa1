// KvCheckpoint: one rank's pages in files of a directory, which outlive the process.
//
//   DIR/lock-RANK                          held while a server's rank uses the directory
//   DIR/FIRST-16-OF-IDENTITY/KEY.kv        a page: header, then its bytes
//
// `identity` stands for everything that a page's bytes depend on but its tokens (weights, types,
// layout, rank): pages of anything else lie in another folder, and a file says its identity itself.
// A file is a page only if its size, every byte of its header and the SHA-256 of its content are
// right when it is read; what is not is removed or ignored, and logged once. Files are written
// under another name and renamed.
//
// One thread writes, reads and removes, in the order of the calls, none of which waits for it.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/cache/page_key.h"

namespace shoal {

// The directory, made where it is missing, and for this rank alone while it lives.
class KvCheckpointDirectory {
 public:
  // Throws InvalidInput when it cannot be written, or is another server's.
  KvCheckpointDirectory(const std::string& path, int rank);
  ~KvCheckpointDirectory();
  KvCheckpointDirectory(const KvCheckpointDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int lock_ = -1;
};

class KvCheckpoint {
 public:
  struct Options {
    Sha256 identity{};
    size_t page_bytes = 0;
    int64_t max_pages = 0;  // files; what is found beyond is removed, least recently used first
    size_t max_queued_bytes = size_t{256} << 20;  // not written yet; pages beyond are dropped
  };
  // Finds the files that may be pages, by name and size. Throws InvalidInput when the folder cannot
  // be made or read.
  KvCheckpoint(std::shared_ptr<KvCheckpointDirectory> directory, const Options& options);
  ~KvCheckpoint();  // writes what is queued
  KvCheckpoint(const KvCheckpoint&) = delete;

  const std::vector<PageKey>& found() const {
    return found_;
  }  // at start, least recently used first
  // All bytes that a file of such a page takes.
  static int64_t file_bytes(size_t page_bytes);

  // Copies the page. Dropped while too much is queued, and after a write has failed (disk full):
  // logged once.
  void save(const PageKey& key, const std::byte* page);
  void drop(const PageKey& key);
  // Reads pages until one is missing or wrong. The memory must not be touched until loaded(ticket)
  // >= 0.
  struct Load {
    PageKey key;
    std::byte* to;  // [page_bytes]
  };
  void load(uint64_t ticket, std::vector<Load> pages);
  // How many of its pages are there, in order; -1: not known yet. Forgets the tickets below it.
  int64_t loaded(uint64_t ticket);

  void wait_idle();  // for tests
  struct Counters {
    int64_t written = 0, read = 0, dropped = 0, refused = 0;  // refused: files that were no pages
  };
  Counters counters() const;

 private:
  std::string file_of(const PageKey& key) const { return folder_ + "/" + to_hex(key) + ".kv"; }
  std::vector<std::byte> header(const PageKey& key, const Sha256& content) const;
  void find_files();
  void queue(std::function<void()> task, size_t bytes);
  void work();
  void write(const PageKey& key, const std::vector<std::byte>& page);
  bool read(const PageKey& key, std::byte* to);
  void refuse(const std::string& file, const std::string& why);

  const std::shared_ptr<KvCheckpointDirectory> directory_;
  const Options options_;
  std::string folder_;
  std::vector<PageKey> found_;
  bool refused_ = false, write_failed_ = false;  // of the thread

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<std::function<void()>, size_t>>
      tasks_;  // guarded by mutex_, as what follows
  size_t queued_bytes_ = 0;
  bool busy_ = false, ending_ = false, writable_ = true;
  std::map<uint64_t, int64_t> loaded_;
  Counters counters_;

  std::thread thread_;
};

}  // namespace shoal
