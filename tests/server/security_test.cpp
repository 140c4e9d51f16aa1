// Keys, the guard's decisions and the checks of certificate files, without a server.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"
#include "server/call_status.h"
#include "server/security/api_keys.h"
#include "server/security/guard.h"
#include "server/security/tls_files.h"
#include "tests/server/test_certificates.h"
#include "tests/support/temp_dir.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

const WallTime kNow = std::chrono::system_clock::now();

std::string hash_of(const std::string& key) { return to_hex(sha256(bytes_of(key))); }

std::string line(const std::string& name, const std::string& key, const std::string& more = "") {
  return "{\"name\": \"" + name + "\", \"sha256\": \"" + hash_of(key) + "\"" + more + "}\n";
}

void write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

TEST_CASE("a file of keys gives each its client", "[security]") {
  const auto keys = parse_api_keys(
      "keys", "# who\n\n" +
                  line("team-a", "one",
                       R"(, "requests_per_second": 2.5, "burst": 7, "max_sequences": 3)"
                                        R"(, "best_priority": -5)") +
                  line("team-b", "two", R"(, "expires": "2031-02-03T04:05:06Z")") +
                  "  " + line("team-b", "three"));
  REQUIRE(keys.size() == 3);
  const Client& a = *keys[0].client;
  CHECK(a.name == "team-a");
  CHECK(a.requests_per_second == 2.5);
  CHECK(a.burst == 7);
  CHECK(a.max_sequences == 3);
  CHECK(a.best_priority == -5);
  CHECK(keys[0].expires == WallTime::max());
  CHECK(keys[1].expires == std::chrono::system_clock::from_time_t(1927857906));
  CHECK(keys[1].client->best_priority == -100);
  // Two keys of one client are one client; others share neither turn nor cache.
  CHECK(keys[1].client == keys[2].client);
  CHECK(keys[1].client->id != a.id);
  CHECK(keys[1].client->cache_salt != a.cache_salt);
  CHECK(a.id != 0);
  CHECK_FALSE(a.cache_salt.empty());
  // The same in every process: what is cached on disk is found again.
  CHECK(parse_api_keys("keys", line("team-a", "other"))[0].client->id == a.id);
  CHECK(parse_api_keys("keys", line("team-a", "other"))[0].client->cache_salt == a.cache_salt);
}

TEST_CASE("a wrong file of keys is refused by line, and what it holds not shown", "[security]") {
  struct Row {
    std::string text, says;
  };
  const std::string good = line("a", "one");
  const std::vector<Row> table = {
      {"", "no key"},
      {"# only a comment\n", "no key"},
      {"shoal-SECRET\n", "line 1: not a JSON object"},
      {good + "[1]\n", "line 2: not a JSON object"},
      {good + "{\"name\": \"b\"}\n", "line 2: sha256"},
      {"{\"name\": \"b\", \"sha256\": \"SECRET\"}\n", "line 1: sha256"},
      {"{\"sha256\": \"" + hash_of("x") + "\"}\n", "line 1: a name has"},
      {line("", "x"), "a name has"},
      {line(std::string(65, 'n'), "x"), "a name has"},
      {line("a b", "x"), "a name has"},
      {line("a", "x", ", \"SECRET\": 1"), "a field is not one of"},
      {line("a", "x", ", \"burst\": -1"), "burst is a number from 0"},
      {line("a", "x", ", \"burst\": \"1\""), "burst is a number from 0"},
      {line("a", "x", ", \"requests_per_second\": 1e9"), "requests_per_second is a number from 0"},
      {line("a", "x", ", \"max_sequences\": 1.5"), "max_sequences is a whole number"},
      {line("a", "x", ", \"best_priority\": -101"), "best_priority is a number from -100"},
      {line("a", "x", ", \"expires\": \"tomorrow\""), "expires is a time in UTC"},
      {line("a", "x", ", \"expires\": \"2031-02-30T00:00:00Z\""), "expires is a time in UTC"},
      {line("a", "x", ", \"expires\": \"2031-02-03T04:05:06+1\""), "expires is a time in UTC"},
      {line("a", "x", ", \"expires\": 12"), "expires is a string"},
      {good + line("b", "one"), "line 2: this key is there already"},
      {good + line("a", "two", ", \"burst\": 3"), "line 2: a has other limits"},
  };
  for (const Row& row : table) {
    INFO(row.text);
    CHECK_THROWS_WITH(parse_api_keys("keys", row.text), Contains(row.says));
    CHECK_THROWS_WITH(parse_api_keys("keys", row.text), !Contains("SECRET"));
  }
}

TEST_CASE("a key is found among all, unless it is another, too long, or expired", "[security]") {
  const TempDir dir;
  const std::string file = dir.path() + "/keys";
  std::string text;
  for (int i = 0; i < 100; ++i) text += line("n" + std::to_string(i), "key-" + std::to_string(i));
  write(file, text + line("old", "old", R"(, "expires": "2001-01-01T00:00:00Z")"));
  const ApiKeys keys(file, "single");
  CHECK(keys.required());
  for (const int i : {0, 57, 99}) {
    const auto found = keys.find("key-" + std::to_string(i), kNow);
    REQUIRE(found.client);
    CHECK(found.client->name == "n" + std::to_string(i));
    CHECK_FALSE(found.expired);
  }
  CHECK(keys.find("single", kNow).client->name.empty());
  for (const std::string& wrong : std::vector<std::string>{
           "", "key-", "key-100", "key-5 ", "Key-5", hash_of("key-5"), std::string(100'000, 'k')}) {
    CHECK_FALSE(keys.find(wrong, kNow).client);
  }
  CHECK(keys.find("old", kNow).expired);
  CHECK_FALSE(ApiKeys("", "").required());
}

TEST_CASE("keys follow their file; a wrong file leaves them as they were", "[security]") {
  const TempDir dir;
  const std::string file = dir.path() + "/keys";
  write(file, line("a", "one"));
  ApiKeys keys(file, "");
  const auto knows = [&](const char* key) { return keys.find(key, kNow).client != nullptr; };
  write(file + ".new", line("b", "two"));
  std::filesystem::rename(file + ".new", file);
  keys.reload_if_changed();
  CHECK(knows("two"));
  CHECK_FALSE(knows("one"));
  write(file, "broken\n");
  keys.reload_if_changed();
  CHECK(knows("two"));
  std::filesystem::remove(file);
  keys.reload_if_changed();
  CHECK(knows("two"));
  write(file, line("c", "three"));
  keys.reload();
  CHECK(knows("three"));
  CHECK_THROWS_WITH(ApiKeys(dir.path() + "/none", ""), Contains("No such file"));
  CHECK_THROWS_WITH(ApiKeys(dir.path(), ""), Contains("not a file"));
}

TEST_CASE("a fresh key is random, and its line is of the file's form", "[security]") {
  const NewKey one = make_api_key("me"), two = make_api_key("me");
  CHECK(one.key != two.key);
  CHECK(one.key.size() == 6 + 43);
  CHECK(one.line.find(one.key) == std::string::npos);
  const auto keys = parse_api_keys("keys", one.line);
  CHECK(keys.at(0).hash == sha256(bytes_of(one.key)));
  CHECK_THROWS_AS(make_api_key("a\nb"), InvalidInput);
}

TEST_CASE("the guard lets nobody through but who has one right key", "[security]") {
  Guard guard({.api_key = "right", .api_key_file = "", .open_health = true});
  const auto code = [&](std::string_view method, std::vector<std::string_view> headers) {
    try {
      guard.admit(method, {std::move(headers), "somebody", "peer"});
      return CallCode::kOk;
    } catch (const CallRefused& error) {
      return error.code();
    }
  };
  const std::string_view chat = "/shoal.v1.Inference/Chat";
  CHECK(code(chat, {"Bearer right"}) == CallCode::kOk);
  for (const auto& headers : std::vector<std::vector<std::string_view>>{
           {}, {"Bearer wrong"}, {"right"}, {"bearer right"}, {"Bearer right "}, {"Bearer "}, {""},
           {"Basic right"}, {"Bearer right", "Bearer right"}, {"Bearer wrong", "Bearer right"}}) {
    CHECK(code(chat, headers) == CallCode::kUnauthenticated);
    CHECK(code("/grpc.health.v1.Health/Check", headers) == CallCode::kOk);
    for (const char* other : {"/grpc.health.v1.HealthX/Check", "/x/grpc.health.v1.Health/Check", "",
                              "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}) {
      CHECK(code(other, headers) == CallCode::kUnauthenticated);
    }
  }
  Guard closed_health({.api_key = "right"});
  CHECK_THROWS_AS(closed_health.admit("/grpc.health.v1.Health/Check", {}), CallRefused);
}

TEST_CASE("without keys a client certificate names the client", "[security]") {
  Guard guard({});
  const auto a = guard.admit("/x/Y", {{}, "a.example", "peer"});
  CHECK(a->name == "a.example");
  CHECK(a->cache_salt != guard.admit("/x/Y", {{}, "b.example", "peer"})->cache_salt);
  CHECK(a->cache_salt != make_client("key", "a.example")->cache_salt);
  CHECK(guard.admit("/x/Y", {})->id == 0);
  const auto odd = guard.admit("/x/Y", {{}, "a\nb\" client=other", "peer"});
  CHECK_THAT(odd->name, Catch::Matchers::Matches("cert-[0-9a-f]{16}"));
}

TEST_CASE("certificate files that are wrong are refused by name", "[security]") {
  const TempDir dir;
  const TestAuthority authority("ca");
  const PemPair one = authority.sign("one"), two = authority.sign("two");
  const auto file = [&](const std::string& name, const std::string& text) {
    const std::string path = dir.path() + "/" + name;
    write(path, text);
    return path;
  };
  const std::string cert = file("cert", one.certificate), key = file("key", one.key);
  const std::string ca = file("ca", authority.pem()), empty = file("empty", "");
  const std::string text = file("text", "hello"), other = file("other", two.key);
  const std::string cut = file("cut", one.certificate + one.certificate.substr(0, 300));
  CHECK(load_tls({cert, key, ca}).ca_certs == authority.pem());
  // Expired: a warning, no error.
  const PemPair old = authority.sign("old", -60);
  CHECK_NOTHROW(load_tls({file("oldcert", old.certificate), file("oldkey", old.key), ""}));
  struct Row {
    TlsPaths paths;
    const char* says;
  };
  for (const Row& row : std::vector<Row>{
           {{cert, "", ""}, "--ssl-keyfile is missing"},
           {{"", key, ""}, "--ssl-certfile is missing"},
           {{"", "", ca}, "--ssl-certfile is missing"},
           {{dir.path() + "/none", key, ""}, "No such file"},
           {{dir.path(), key, ""}, "not a file"},
           {{empty, key, ""}, "the file is empty"},
           {{text, key, ""}, "not a PEM file of certificates"},
           {{key, key, ""}, "not a PEM file of certificates"},
           {{cut, key, ""}, "certificate 2 cannot be read"},
           {{cert, text, ""}, "not a PEM file of a private key"},
           {{cert, other, ""}, "not the key of the certificate"},
           {{cert, key, text}, "--ssl-ca-certs"},
           {{cert, key, dir.path() + "/none"}, "--ssl-ca-certs"},
       }) {
    CHECK_THROWS_WITH(load_tls(row.paths), Contains(row.says));
  }
  // Files that change one after the other are taken when they fit.
  TlsFiles files({cert, key, ""});
  const auto before = files.current();
  write(cert, two.certificate);
  files.reload_if_changed();
  CHECK(files.current() == before);
  write(key, two.key);
  files.reload_if_changed();
  CHECK(files.current()->private_key == two.key);
}

}  // namespace
}  // namespace shoal
