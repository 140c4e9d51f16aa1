// ApiKeys: the keys that may call, each with its client (--api-key-file, --api-key).
//
// The file has one JSON object a line; empty lines and lines that begin with # are left out:
//   {"name": "team-a", "sha256": "64 hex digits", "requests_per_second": 5, "burst": 10,
//    "max_sequences": 16, "best_priority": 0, "expires": "2027-01-31T00:00:00Z"}
// name and sha256 are required, the rest is what server/call_context.h says of it; `expires` is UTC. The
// hash is SHA-256 of the key itself: a key has 256 random bits (`shoal key new`), which no salt and no slow
// hash makes harder to guess. Lines with the same name are several keys of one client, whose limits must be
// the same on each: a new key is added, clients change over, the old one is taken out.
//
// Thread-safe. Calls that run keep the client that they began with.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cache/page_key.h"
#include "server/call_context.h"
#include "server/security/small_file.h"

namespace shoal {

using WallTime = std::chrono::system_clock::time_point;

struct ApiKey {
  Sha256 hash{};
  std::shared_ptr<const Client> client;
  WallTime expires = WallTime::max();
};

// Throws InvalidInput: `what` and the number of the line, never what is in it beyond a name.
std::vector<ApiKey> parse_api_keys(const std::string& what, std::string_view text);

class ApiKeys {
 public:
  // `file`, `single`: --api-key-file and --api-key; both, one or none. Throws InvalidInput.
  ApiKeys(std::string file, const std::string& single);

  bool required() const { return required_; }
  // Nothing: no such key. Takes the same time whatever is right about `key`.
  struct Found {
    std::shared_ptr<const Client> client;
    bool expired = false;
  };
  Found find(std::string_view key, WallTime now) const;

  // Reads the file again: when it has changed, or anyway. A file that is wrong is logged, and the keys stay
  // as they are.
  void reload_if_changed();
  void reload();

 private:
  using Table = std::vector<ApiKey>;
  std::shared_ptr<const Table> read() const;
  std::shared_ptr<const Table> table() const;

  const std::string file_;
  std::vector<ApiKey> single_;
  const bool required_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Table> table_;  // guarded by mutex_, as the next
  FileStamp stamp_;
};

// A client that is known by something else than a line of the file: `kind` keeps names of one kind apart
// from those of others.
std::shared_ptr<Client> make_client(std::string_view kind, const std::string& name);

// A fresh key, 256 random bits behind "shoal-", and the line for the file.
struct NewKey {
  std::string key, line;
};
NewKey make_api_key(const std::string& name);

}  // namespace shoal
