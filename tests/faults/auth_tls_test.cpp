// Test 19 at the real process: keys, certificates and their change under load; and the prefix cache of one key from
// another's (test 20). The methods one by one, and the guard, are in tests/server/security_service_test.cpp.
#include <catch2/catch.hpp>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/cache/page_key.h"
#include "tests/faults/raw_connection.h"
#include "tests/faults/server.h"
#include "tests/server/test_certificates.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("shoal-auth-" + std::to_string(getpid()))) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string write(const std::string& name, const std::string& text) const {
    const fs::path whole = path_ / name, part = path_ / (name + ".new");
    std::ofstream(part) << text;
    fs::permissions(part, fs::perms::owner_read | fs::perms::owner_write);
    fs::rename(part, whole);
    return whole;
  }

 private:
  const fs::path path_;
};

std::string key_line(const std::string& name, const std::string& key, const std::string& more = "") {
  const Sha256 hash = sha256(bytes_of(key));
  return R"({"name": ")" + name + R"(", "sha256": ")" + to_hex(hash) + "\"" + more + "}\n";
}

const std::vector<std::string> kMethods = {
    "/shoal.v1.Inference/Chat",          "/shoal.v1.Inference/Complete",
    "/shoal.v1.Inference/Tokenize",      "/shoal.v1.Inference/Detokenize",
    "/shoal.v1.Inference/GetModel",      "/shoal.v1.Inference/GetStatus",
    "/grpc.health.v1.Health/Check",      "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/no.such.Service/Method",
};

TEST_CASE("19: without a right key nothing answers; keys come and go without a restart; 20: prefixes stay apart") {
  const Folder folder;
  const std::string file =
      folder.write("keys.jsonl", key_line("a", "key-of-a") + key_line("b", "key-of-b", R"(, "max_sequences": 2)"));
  FaultServer server({"--api-key-file", file});
  const auto a = server.connect({.token = "key-of-a"}), b = server.connect({.token = "key-of-b"});
  for (const char* token : {"", "key-of-c", "key-of-", "key-of-aa", "KEY-OF-A"}) {
    const auto stranger = server.connect({.token = token});
    for (const std::string& method : kMethods) {
      INFO(method << " with '" << token << "'");
      std::string reply;
      const CallResult result = stranger->raw(method, "", &reply, {.deadline_seconds = 20});
      CHECK(result.code == Code::kUnauthenticated);
      CHECK(reply.empty());
      CHECK(result.message.find("key-of") == std::string::npos);
    }
  }
  CHECK(server.process.output().find("key-of") == std::string::npos);

  // One key's prompts are found again by that key only.
  const v1::CompleteRequest prompt = greedy(some_ids(77, 400), 4);
  const CallResult first = a->complete(prompt), again = a->complete(prompt), other = b->complete(prompt),
                   others_again = b->complete(prompt);
  REQUIRE(first.code == Code::kOk);
  CHECK(first.usage.cached_tokens() == 0);
  CHECK(again.usage.cached_tokens() >= 384);
  CHECK(other.usage.cached_tokens() == 0);
  CHECK(others_again.usage.cached_tokens() >= 384);
  CHECK(other.token_ids == first.token_ids);

  // A client's own limit does not touch another client.
  const auto one = b->open(greedy({300}, 2000)), two = b->open(greedy({300}, 2000));
  v1::CompleteResponse response;
  REQUIRE(one->read(&response));
  REQUIRE(two->read(&response));
  CHECK(b->complete(greedy({300}, 1)).code == Code::kResourceExhausted);
  CHECK(a->complete(greedy({300}, 1)).code == Code::kOk);

  // b's key is taken out while b streams: the stream goes on, a new call is refused.
  const auto running = a->open(greedy({300, 301}, 1900));
  REQUIRE(running->read(&response));
  folder.write("keys.jsonl", key_line("a", "key-of-a") + key_line("c", "key-of-c"));
  kill(server.process.pid(), SIGHUP);
  const auto c = server.connect({.token = "key-of-c"});
  CHECK(eventually([&] { return c->complete(greedy({300}, 1)).code == Code::kOk; }, 30));
  CHECK(b->complete(greedy({300}, 1)).code == Code::kUnauthenticated);
  CHECK(one->finish().code == Code::kOk);
  CHECK(running->finish().token_ids.size() == 1900);
  // A file that is wrong changes nothing.
  folder.write("keys.jsonl", "{\"name\": \"a\"");
  kill(server.process.pid(), SIGHUP);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(a->complete(greedy({300}, 1)).code == Code::kOk);
  CHECK(server.process.output().find("key-of") == std::string::npos);
}

TEST_CASE("19: mutual TLS: who has no right certificate gets no answer; certificates change under load") {
  const Folder folder;
  const TestAuthority ours("ours"), theirs("theirs"), next("next");
  const PemPair certificate = ours.sign("localhost");
  const std::string cert = folder.write("cert.pem", certificate.certificate);
  const std::string key = folder.write("key.pem", certificate.key);
  const std::string ca = folder.write("ca.pem", ours.pem());
  FaultServer server({"--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certs", ca});
  const auto with = [&](const TestAuthority& trusted, const PemPair& own) {
    return server.connect({.tls = {.ca = trusted.pem(), .certificate = own.certificate, .key = own.key,
                                   .server_name = "localhost"}});
  };
  const PemPair good = ours.sign("client");
  const auto client = with(ours, good);
  const CallOptions quick{.deadline_seconds = 20};
  const v1::CompleteRequest request = greedy({300, 301}, 3);
  REQUIRE(client->complete(request).code == Code::kOk);

  struct Row {
    const char* what;
    std::unique_ptr<FaultClient> client;
  };
  std::vector<Row> strangers;
  strangers.push_back({"no certificate", with(ours, {})});
  strangers.push_back({"another authority's", with(ours, theirs.sign("client"))});
  strangers.push_back({"expired", with(ours, ours.sign("client", -60))});
  strangers.push_back({"a server that it does not trust", with(theirs, good)});
  strangers.push_back({"plain text", server.connect()});
  for (const Row& row : strangers) {
    INFO(row.what);
    CHECK(row.client->complete(request, quick).code == Code::kUnavailable);
  }
  // Half a handshake, and many of them, hold up nobody.
  std::vector<std::unique_ptr<RawConnection>> halves;
  for (int i = 0; i < 100; ++i) {
    halves.push_back(std::make_unique<RawConnection>(server.port));
    halves.back()->send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11));
  }
  CHECK(with(ours, good)->complete(request).code == Code::kOk);
  halves.clear();

  // A new certificate by another authority, while streams run.
  const auto stream = client->open(greedy({300, 301}, 1900));
  v1::CompleteResponse response;
  REQUIRE(stream->read(&response));
  const PemPair renewed = next.sign("localhost");
  folder.write("key.pem", renewed.key);
  folder.write("cert.pem", renewed.certificate);
  kill(server.process.pid(), SIGHUP);
  CHECK(eventually([&] { return with(next, good)->complete(request, quick).code == Code::kOk; }, 60));
  CHECK(with(ours, good)->complete(request, quick).code == Code::kUnavailable);
  CHECK(stream->finish().token_ids.size() == 1900);
}

}  // namespace
}  // namespace shoal
