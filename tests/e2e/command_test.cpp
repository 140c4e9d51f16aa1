// `shoal` started wrongly, and ended rightly.
#include <signal.h>
#include <catch2/catch.hpp>

#include "tests/e2e/server_process.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

constexpr int kSeconds = 120;

TEST_CASE("a start that cannot work says why in one line") {
  struct Row {
    std::vector<std::string> args;
    const char* says;
  };
  const std::string port = [] {
    const std::string& address = DemoServer::instance().address;
    return address.substr(address.rfind(':') + 1);
  }();
  const auto row = GENERATE_COPY(values<Row>({
      {{"serve", "--model", "/no/such/folder"}, "/no/such/folder"},
      {{"serve", "--model", SHOAL_SOURCE_DIR "/docs"}, "config.json"},
      {{"serve"}, "--model"},
      {{"serve", "--model", demo_model(), "--port", port}, "Address already in use"},
      {{"serve", "--model", demo_model(), "--tensor-parallel-size", "99", "--port", "0"}, "99"},
      {{"serve", "--model", demo_model(), "--dtype", "int3"}, "int3"},
      {{"serve", "--model", demo_model(), "--gpu-memory-limit", "5MiB", "--port", "0"}, "does not fit: rank 0"},
      {{"serve", "--model", demo_model(), "--gpu-memory-limit", "0", "--port", "0"}, "--gpu-memory-limit 0"},
      {{"serve", "--model", demo_model(), "--gpu-memory-limit", "99TiB", "--port", "0"}, "--gpu-memory-limit 99TiB"},
      {{"plan", "--model", "V9"}, "known without files: V2-Lite"},
      {{"chat", "--server", "127.0.0.1:1", "Hello"}, "no server answers at 127.0.0.1:1"},
      {{"logits", "--model", demo_model(), "--tokens", "1,x", "--out", "/dev/null"}, "tokens"},
      {{"frobnicate"}, "frobnicate"},
  }));
  ShoalProcess process(row.args);
  const int code = process.wait_exit(kSeconds);
  const std::string error = process.wait_line("shoal: error: ", kSeconds);
  INFO(process.output());
  CHECK(code == 2);
  CHECK_THAT(error, Contains(row.says));
}

TEST_CASE("SIGTERM ends an idle server with exit code 0") {
  ShoalProcess server({"serve", "--model", demo_model(), "--port", "0"});
  REQUIRE_FALSE(server.wait_line("Ready: ", kSeconds).empty());
  server.send(SIGTERM);
  CHECK(server.wait_exit(kSeconds) == 0);
  CHECK_THAT(server.output(), Contains("Shutting down"));
}

TEST_CASE("SIGINT while the model loads ends the server") {
  ShoalProcess server({"serve", "--model", demo_model(), "--port", "0"});
  REQUIRE_FALSE(server.wait_line("Listening on", kSeconds).empty());
  server.send(SIGINT);
  CHECK(server.wait_exit(kSeconds) == 0);
}

TEST_CASE("shoal chat prints the answer in a pipe") {
  ShoalProcess chat({"chat", "--server", DemoServer::instance().address, "--max-tokens", "4",
                     "--stats", "Hello"});
  CHECK(chat.wait_exit(kSeconds) == 0);
  CHECK_FALSE(chat.wait_line("tokens/s", kSeconds).empty());
}

}  // namespace
}  // namespace shoal
