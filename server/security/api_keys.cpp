#include "server/security/api_keys.h"

#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr const char* kFlag = "--api-key-file";
constexpr size_t kMaxFileBytes = size_t{4} << 20;
constexpr size_t kMaxKeys = 10'000;      // all of them are looked at for every call
constexpr size_t kMaxNameLength = 64;
constexpr size_t kMaxKeyLength = 512;    // what a call sends beyond is no key
constexpr size_t kKeyBytes = 32;
constexpr int kWorstPriority = 100;      // of request_validation's range

bool valid_name(const std::string& name) {
  return !name.empty() && name.size() <= kMaxNameLength && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._-@").find(c) != std::string_view::npos;
  });
}

void check_name(const std::string& where, const std::string& name) {
  if (valid_name(name)) return;
  throw_invalid("{}: a name has 1 to {} letters, digits, '.', '_', '-' or '@'", where,
                kMaxNameLength);
}

// "2027-01-31T00:00:00Z", and no other form of it: what could be read in two ways is not.
WallTime parse_time(const std::string& where, const std::string& text) {
  std::tm tm{};
  char end = 0;
  const int fields = std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%2dZ%c", &tm.tm_year, &tm.tm_mon,
                                 &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &end);
  std::tm given = tm;
  tm.tm_year -= 1900;
  tm.tm_mon -= 1;
  const std::time_t seconds = timegm(&tm);
  const bool same = tm.tm_year == given.tm_year - 1900 && tm.tm_mon == given.tm_mon - 1 &&
                    tm.tm_mday == given.tm_mday && tm.tm_hour == given.tm_hour &&
                    tm.tm_min == given.tm_min && tm.tm_sec == given.tm_sec;
  if (fields != 6 || text.size() != 20 || text.back() != 'Z' || !same) {
    throw_invalid("{}: expires is a time in UTC like 2027-01-31T00:00:00Z", where);
  }
  // The clock's type ends in 2262: a year beyond is its end ("9999-12-31" means never), one before 1678 its beginning.
  if (seconds >= WallTime::clock::to_time_t(WallTime::max())) return WallTime::max();
  if (seconds <= WallTime::clock::to_time_t(WallTime::min())) return WallTime::min();
  return WallTime::clock::from_time_t(seconds);
}

double number(const std::string& where, const nlohmann::json& line, const char* name, double fallback,
              double least, double most) {
  const auto it = line.find(name);
  if (it == line.end()) return fallback;
  const double value = it->is_number() ? it->get<double>() : NAN;
  if (!(value >= least && value <= most)) {
    throw_invalid("{}: {} is a number from {} to {}", where, name, least, most);
  }
  return value;
}

int64_t integer(const std::string& where, const nlohmann::json& line, const char* name,
                int64_t fallback, int64_t least, int64_t most) {
  const auto it = line.find(name);
  if (it != line.end() && !it->is_number_integer()) {
    throw_invalid("{}: {} is a whole number from {} to {}", where, name, least, most);
  }
  return static_cast<int64_t>(number(where, line, name, static_cast<double>(fallback),
                                     static_cast<double>(least), static_cast<double>(most)));
}

std::string text_of(const std::string& where, const nlohmann::json& line, const char* name) {
  const auto it = line.find(name);
  if (it == line.end()) return {};
  if (!it->is_string()) throw_invalid("{}: {} is a string", where, name);
  return it->get<std::string>();
}

bool same_limits(const Client& a, const Client& b) {
  return a.max_sequences == b.max_sequences && a.requests_per_second == b.requests_per_second &&
         a.burst == b.burst && a.best_priority == b.best_priority;
}

ApiKey parse_line(const std::string& where, std::string_view text) {
  static const std::set<std::string> kFields = {
      "name", "sha256", "requests_per_second", "burst", "max_sequences", "best_priority", "expires"};
  const nlohmann::json line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) throw_invalid("{}: not a JSON object", where);
  for (const auto& [name, value] : line.items()) {
    // The name is not shown: a line in the wrong form may hold a key there.
    if (!kFields.contains(name)) {
      throw_invalid("{}: a field is not one of name, sha256, requests_per_second, burst, max_sequences, "
                    "best_priority, expires",
                    where);
    }
  }
  const std::string name = text_of(where, line, "name");
  check_name(where, name);
  const std::optional<Sha256> hash = from_hex(text_of(where, line, "sha256"));
  if (!hash) throw_invalid("{}: sha256 is 64 hexadecimal digits in small letters", where);
  const auto client = make_client("key", name);
  client->requests_per_second = number(where, line, "requests_per_second", 0, 0, 1e6);
  client->burst = number(where, line, "burst", 0, 0, 1e6);
  client->max_sequences = integer(where, line, "max_sequences", 0, 0, 1 << 20);
  client->best_priority = static_cast<int32_t>(integer(where, line, "best_priority",
                                                       client->best_priority, -kWorstPriority,
                                                       kWorstPriority));
  ApiKey key{*hash, client, WallTime::max()};
  if (line.contains("expires")) key.expires = parse_time(where, text_of(where, line, "expires"));
  return key;
}

std::string base64url(const std::array<uint8_t, kKeyBytes>& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string text;
  uint32_t bits = 0;
  int count = 0;
  for (const uint8_t byte : bytes) {
    bits = bits << 8 | byte;
    for (count += 8; count >= 6; count -= 6) text += kDigits[bits >> (count - 6) & 63];
  }
  if (count > 0) text += kDigits[bits << (6 - count) & 63];
  return text;
}

}  // namespace

std::shared_ptr<Client> make_client(std::string_view kind, const std::string& name) {
  auto client = std::make_shared<Client>();
  client->name = name;
  // The salt need not be secret: nobody can choose it, because it comes with a key or a certificate.
  client->cache_salt = std::string(kind) + ":" + name;
  for (const uint8_t byte : sha256(bytes_of(client->cache_salt))) client->id = client->id << 8 | byte;
  return client;
}

std::vector<ApiKey> parse_api_keys(const std::string& what, std::string_view text) {
  std::vector<ApiKey> keys;
  std::map<std::string, std::shared_ptr<const Client>> clients;
  std::set<Sha256> hashes;
  size_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string where = fmt::format("{}, line {}", what, ++number);
    const size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos || line[begin] == '#') continue;
    ApiKey key = parse_line(where, line);
    if (!hashes.insert(key.hash).second) throw_invalid("{}: this key is there already", where);
    const auto [known, fresh] = clients.try_emplace(key.client->name, key.client);
    if (!fresh && !same_limits(*known->second, *key.client)) {
      throw_invalid("{}: {} has other limits on a line above", where, key.client->name);
    }
    key.client = known->second;
    keys.push_back(std::move(key));
    if (keys.size() > kMaxKeys) throw_invalid("{}: more than {} keys", what, kMaxKeys);
  }
  if (keys.empty()) throw_invalid("{}: there is no key, so nobody could call", what);
  return keys;
}

ApiKeys::ApiKeys(std::string file, const std::string& single)
    : file_(std::move(file)), required_(!file_.empty() || !single.empty()) {
  if (required_ && !page_keys_supported()) {
    throw_invalid("--api-key and {} need a build with OpenSSL", kFlag);
  }
  if (!single.empty()) {
    // One key for everybody is as none: its holders share what is cached.
    auto client = std::make_shared<Client>();
    single_.push_back({sha256(bytes_of(single)), std::move(client), WallTime::max()});
  }
  stamp_ = stamp_of(file_);
  table_ = read();
}

std::shared_ptr<const ApiKeys::Table> ApiKeys::read() const {
  Table table = single_;
  if (!file_.empty()) {
    const std::string what = fmt::format("{} {}", kFlag, file_);
    std::vector<ApiKey> keys =
        parse_api_keys(what, read_small_file(kFlag, file_, kMaxFileBytes));
    const auto expired = std::ranges::count_if(
        keys, [now = std::chrono::system_clock::now()](const ApiKey& k) { return k.expires <= now; });
    spdlog::info("{}: {} keys{}", what, keys.size(),
                 expired > 0 ? fmt::format(", {} of them expired", expired) : "");
    table.insert(table.end(), std::make_move_iterator(keys.begin()),
                 std::make_move_iterator(keys.end()));
  }
  return std::make_shared<const Table>(std::move(table));
}

std::shared_ptr<const ApiKeys::Table> ApiKeys::table() const {
  const std::lock_guard lock(mutex_);
  return table_;
}

ApiKeys::Found ApiKeys::find(std::string_view key, WallTime now) const {
  if (key.size() > kMaxKeyLength) return {};
  const Sha256 given = sha256(bytes_of(key));
  const std::shared_ptr<const Table> keys = table();
  size_t found = keys->size();
  for (size_t i = 0; i < keys->size(); ++i) {
    unsigned difference = 0;
    for (size_t b = 0; b < given.size(); ++b) difference |= given[b] ^ (*keys)[i].hash[b];
    // All ones for the equal one: no branch tells which it was.
    const size_t equal = size_t{0} - ((difference - 1) >> 31);
    found = (found & ~equal) | (i & equal);
  }
  if (found == keys->size()) return {};
  const ApiKey& right = (*keys)[found];
  return {right.client, right.expires <= now};
}

void ApiKeys::reload_if_changed() {
  if (file_.empty()) return;
  const FileStamp now = stamp_of(file_);
  {
    const std::lock_guard lock(mutex_);
    if (now == stamp_) return;
  }
  reload();
}

void ApiKeys::reload() {
  if (file_.empty()) return;
  const FileStamp stamp = stamp_of(file_);
  std::shared_ptr<const Table> table;
  try {
    table = read();
  } catch (const InvalidInput& error) {
    spdlog::error("{}; the keys stay as they were", error.what());
  }
  const std::lock_guard lock(mutex_);
  stamp_ = stamp;  // also of a wrong one, which is not told again every second
  if (table) table_ = std::move(table);
}

NewKey make_api_key(const std::string& name) {
  check_name("--name", name);
  std::array<uint8_t, kKeyBytes> bytes;
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw DeviceFault("the kernel gives no random bytes");
  }
  NewKey fresh;
  fresh.key = "shoal-" + base64url(bytes);
  fresh.line = nlohmann::ordered_json{{"name", name}, {"sha256", to_hex(sha256(bytes_of(fresh.key)))}}
                   .dump();
  return fresh;
}

}  // namespace shoal
