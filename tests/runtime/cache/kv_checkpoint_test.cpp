// Pages in files: found again after a restart, and never trusted.
#include "runtime/cache/kv_checkpoint.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <set>

#include "kernels/base/error.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
constexpr size_t kPage = 1000;

struct Folder {
  Folder() : path(fs::temp_directory_path() / fmt::format("shoal-kv-{}", getpid())) {
    fs::remove_all(path);
  }
  ~Folder() { fs::remove_all(path); }
  std::vector<fs::path> files() const {  // pages
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.path().extension() == ".kv") files.push_back(entry.path());
    }
    return files;
  }
  fs::path path;
};

PageKey key(int n) { return sha256(bytes_of(std::to_string(n))); }
std::vector<std::byte> page(int n) {
  std::vector<std::byte> bytes(kPage);
  for (size_t i = 0; i < kPage; ++i) bytes[i] = static_cast<std::byte>(n * 31 + i);
  return bytes;
}

KvCheckpoint::Options options(const std::string& identity = "model") {
  return {.identity = sha256(bytes_of(identity)), .page_bytes = kPage, .max_pages = 100};
}

// One life of a server.
struct Store {
  explicit Store(const Folder& folder, const KvCheckpoint::Options& o = options(), int rank = 0)
      : files(std::make_shared<KvCheckpointDirectory>(folder.path.string(), rank), o) {}
  void save(int n) { files.save(key(n), page(n).data()); }
  // How many of these are there; the right bytes of them are checked.
  int64_t load(std::vector<int> numbers) {
    std::vector<std::vector<std::byte>> memory(numbers.size(), std::vector<std::byte>(kPage));
    std::vector<KvCheckpoint::Load> pages;
    for (size_t i = 0; i < numbers.size(); ++i)
      pages.push_back({key(numbers[i]), memory[i].data()});
    files.load(++ticket, std::move(pages));
    files.wait_idle();
    const int64_t count = files.loaded(ticket);
    REQUIRE(count >= 0);
    for (int64_t i = 0; i < count; ++i) CHECK(memory[i] == page(numbers[i]));
    return count;
  }
  std::set<PageKey> found() const { return {files.found().begin(), files.found().end()}; }
  KvCheckpoint files;
  uint64_t ticket = 0;
};

std::vector<char> read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write_file(const fs::path& path, const std::vector<char>& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

TEST_CASE("pages survive a restart, in the order of their last use, within their number") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Folder folder;
  {
    Store store(folder);
    CHECK(store.files.found().empty());
    for (int n = 0; n < 5; ++n) {
      store.save(n);
      store.files.wait_idle();
      usleep(10000);  // file systems count time in ticks
    }
    CHECK(store.load({0, 1}) == 2);
    CHECK(store.load({2, 9, 3}) == 1);  // up to the first that is missing
    CHECK(store.files.loaded(999) == -1);
    store.files.drop(key(4));
    store.save(5);  // written by the end
  }
  {
    Store store(folder);
    CHECK(store.found() == std::set{key(0), key(1), key(2), key(3), key(5)});
    CHECK(store.files.found().front() == key(3));  // not used since it was written
    CHECK(store.load({0, 1, 2, 3, 5}) == 5);
    CHECK(store.files.counters().read == 5);
  }
  KvCheckpoint::Options two = options();
  two.max_pages = 2;
  const Store store(folder, two);
  CHECK(store.files.found().size() == 2);
  CHECK(folder.files().size() == 2);
  CHECK(store.found().contains(key(5)));
}

TEST_CASE("a page with any byte changed, cut or added is not trusted") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Folder folder;
  {
    Store store(folder);
    store.save(1);
  }
  const fs::path file = folder.files().at(0);
  const std::vector<char> good = read_file(file);
  REQUIRE(good.size() == static_cast<size_t>(KvCheckpoint::file_bytes(kPage)));
  Store store(folder);
  CHECK(store.load({1}) == 1);
  int64_t refused = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    std::vector<char> bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
    write_file(file, bad);
    CHECK(store.load({1}) == 0);
    CHECK(store.files.counters().refused == ++refused);
    CHECK_FALSE(fs::exists(file));
  }
  for (const size_t size : {size_t{0}, size_t{7}, size_t{111}, good.size() - 1, good.size() + 1}) {
    std::vector<char> bad = good;
    bad.resize(size);
    write_file(file, bad);
    CHECK(store.load({1}) == 0);
  }
  // Another page's file under this page's name; a folder, a link.
  store.save(2);
  store.files.wait_idle();
  fs::rename(folder.files().at(0), file);
  CHECK(store.load({1}) == 0);
  fs::create_directory(file);
  CHECK(store.load({1}) == 0);
  fs::remove(file);
  write_file(folder.path / "elsewhere", good);
  fs::create_symlink(folder.path / "elsewhere", file);
  CHECK(store.load({1}) == 0);
  fs::remove(file);
  write_file(file, good);
  CHECK(store.load({1}) == 1);
}

TEST_CASE("files of another model, layout or size, and what is none, are ignored at start") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Folder folder;
  fs::path file;
  {
    Store store(folder);
    store.save(1);
    store.files.wait_idle();
    file = folder.files().at(0);
  }
  const std::vector<char> good = read_file(file);
  {
    Store other(folder, options("another model"));
    CHECK(other.files.found().empty());
    CHECK(other.load({1}) == 0);
    other.save(1);
    other.files.wait_idle();
    // Put where this model's pages are, it says what it is.
    for (const fs::path& path : folder.files()) {
      if (path != file) fs::rename(path, file);
    }
  }
  CHECK(Store(folder).load({1}) == 0);
  const fs::path own = file.parent_path();
  write_file(file, good);
  write_file(own / "README", {'x'});
  write_file(own / (std::string(64, 'a') + ".kv"), {'x'});
  write_file(own / (std::string(64, 'Z') + ".kv"), good);
  write_file(own / (std::string(64, 'b') + ".part"), good);  // of a server that was killed
  fs::create_directory(own / (std::string(64, 'c') + ".kv"));
  Store store(folder);
  CHECK(store.found() == std::set{key(1)});
  CHECK(store.load({1}) == 1);
  CHECK_FALSE(fs::exists(own / (std::string(64, 'b') + ".part")));
  CHECK(fs::exists(own / "README"));
}

TEST_CASE("a directory is one server's, and has to be writable") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Folder folder;
  {
    const KvCheckpointDirectory first(folder.path.string(), 0);
    CHECK_NOTHROW(KvCheckpointDirectory(folder.path.string(), 1));  // the same server's other rank
    CHECK_THROWS_WITH(KvCheckpointDirectory(folder.path.string(), 0),
                      Contains(folder.path.string()) && Contains("another server"));
  }
  CHECK_NOTHROW(KvCheckpointDirectory(folder.path.string(), 0));
  write_file(folder.path / "file", {'x'});
  CHECK_THROWS_AS(KvCheckpointDirectory((folder.path / "file").string(), 0), InvalidInput);
  CHECK_THROWS_AS(KvCheckpointDirectory((folder.path / "file" / "under").string(), 0),
                  InvalidInput);
  CHECK_THROWS_AS(KvCheckpointDirectory("/proc/shoal", 0), InvalidInput);
  if (geteuid() == 0) return;  // may write anywhere
  fs::create_directory(folder.path / "closed");
  fs::permissions(folder.path / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  CHECK_THROWS_AS(KvCheckpointDirectory((folder.path / "closed").string(), 0), InvalidInput);
}

TEST_CASE("when no more can be written, pages are dropped, and those that are there still read") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Folder folder;
  Store store(folder);
  store.save(1);
  store.files.wait_idle();
  // As a full disk: the write fails in its middle.
  rlimit before;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit full = {500, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_FSIZE, &full) == 0);
  store.save(2);
  store.files.wait_idle();
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  signal(SIGXFSZ, handler);
  store.save(3);
  store.files.wait_idle();
  CHECK(folder.files().size() == 1);  // and nothing half written
  for (const auto& entry : fs::recursive_directory_iterator(folder.path)) {
    CHECK(entry.path().extension() != ".part");
  }
  CHECK(store.files.counters().written == 1);
  CHECK(store.files.counters().dropped == 2);
  CHECK(store.load({1}) == 1);
  CHECK(store.load({2}) == 0);
}

TEST_CASE("what is not written yet is bounded") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Folder folder;
  KvCheckpoint::Options small = options();
  small.max_queued_bytes = 3 * kPage;
  Store store(folder, small);
  for (int n = 0; n < 200; ++n) store.save(n);
  store.files.wait_idle();
  const KvCheckpoint::Counters counters = store.files.counters();
  CHECK(counters.written + counters.dropped == 200);
  CHECK(counters.written >= 3);
  CHECK(counters.dropped > 0);
  CHECK(static_cast<int64_t>(folder.files().size()) == counters.written);
}

}  // namespace
}  // namespace shoal
