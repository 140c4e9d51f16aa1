// Clients that mean harm, through real sockets: each is refused in bounded memory, and the server goes on.
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "tests/server/raw_http2.h"
#include "tests/server/service_fixture.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using grpc::StatusCode;
using std::chrono::milliseconds;

constexpr const char* kChat = "/shoal.v1.Inference/Chat";
constexpr int64_t kMiB = 1 << 20;

int64_t status_kib(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1));
  }
  return 0;
}

// How much more memory this process, which is the server too, has held at once since begin().
class PeakMemory {
 public:
  PeakMemory() {
    std::ofstream("/proc/self/clear_refs") << "5";  // the peak begins anew
    before_ = status_kib("VmRSS");
  }
  int64_t growth() const { return (status_kib("VmHWM") - before_) << 10; }

 private:
  int64_t before_;
};

bool serves(ServiceFixture& fixture) {
  fixture.answer_with("Hi");
  fixture.stub = v1::Inference::NewStub(fixture.channel());
  return fixture.chat(fixture.question("Hello")).content == "Hi";
}

TEST_CASE("compressed messages are refused, and not unpacked", "[security][hostile]") {
  ServiceFixture fixture;
  REQUIRE(serves(fixture));
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  CHECK(fixture.chat(fixture.question(std::string(4000, 'x')), &context).status.error_code() ==
        StatusCode::UNIMPLEMENTED);
  const std::string bomb = gzip_zeros(1024 * kMiB);
  REQUIRE(bomb.size() < 2 * kMiB);
  const PeakMemory memory;
  for (const char* encoding : {"gzip", "identity", "deflate"}) {
    RawConnection client(fixture.server.address());
    client.begin();
    client.headers(1, kChat, {{"grpc-encoding", encoding}});
    const std::string message = grpc_frame(bomb, true);
    // Beyond its window the server need not read; what it does with the rest is its business.
    for (size_t at = 0; at < 48 << 10; at += 16 << 10) {
      if (!client.data(1, message.substr(at, 16 << 10), false)) break;
    }
    client.wait_for("grpc-status", 5);
  }
  // A whole one, small enough for the window: 16 KiB that become 16 MiB.
  const std::string small = grpc_frame(gzip_zeros(16 * kMiB), true);
  REQUIRE(small.size() < 32 << 10);
  for (uint32_t i = 0; i < 20; ++i) {
    RawConnection client(fixture.server.address());
    client.begin();
    client.headers(1, kChat, {{"grpc-encoding", "gzip"}});
    client.data(1, small.substr(0, 16 << 10), false);
    client.data(1, small.substr(std::min<size_t>(small.size(), 16 << 10)), true);
    CHECK(client.wait_for("grpc-status"));
  }
  CHECK(memory.growth() < 100 * kMiB);
  CHECK(serves(fixture));
  CHECK(fixture.engine.submitted().size() == 2);
}

TEST_CASE("what is no gRPC is turned away", "[security][hostile]") {
  ServiceFixture fixture;
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), std::string(100'000, '\xff'),
        std::string("\x16\x03\x01\x02\x00\x01", 6) + std::string(600, '\1'),  // TLS to a plain port
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + std::string(100, '\0'),
        // A frame of 16 MB.
        std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + std::string("\xff\xff\xff\0\0\0\0\0\1", 9)}) {
    RawConnection client(fixture.server.address());
    client.send(bytes);
    CHECK(client.closed(30));
  }
  CHECK(serves(fixture));
}

TEST_CASE("too much metadata is refused, also without a key", "[security][hostile]") {
  GrpcServerOptions options;
  options.guard.api_key = "right";
  ServiceFixture fixture(1024, options);
  const PeakMemory memory;
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    for (int h = 0; h < 60; ++h) {
      context.AddMetadata("x-header-" + std::to_string(h), std::string(4096, 'm'));
    }
    CHECK_FALSE(fixture.chat(fixture.question("Hello"), &context).status.ok());
  }
  // gRPC closes the connection for so much.
  fixture.stub = v1::Inference::NewStub(fixture.channel());
  for (const size_t length : {size_t{600}, size_t{20'000}}) {  // a key that is none
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + std::string(length, 'k'));
    CHECK(fixture.chat(fixture.question("Hello"), &context).status.error_code() ==
          StatusCode::UNAUTHENTICATED);
  }
  {
    grpc::ClientContext context;
    for (int h = 0; h < 1000; ++h) context.AddMetadata("authorization", "Bearer right");
    CHECK(fixture.chat(fixture.question("Hello"), &context).status.error_code() ==
          StatusCode::UNAUTHENTICATED);
  }
  {
    // Ill-formed for gRPC: it closes the connection.
    RawConnection client(fixture.server.address());
    client.begin();
    client.headers(1, kChat, {{"x-bin", "not base64 !!"}});
    client.closed(1);
  }
  CHECK(memory.growth() < 100 * kMiB);
  CHECK(fixture.engine.submitted().empty());
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer right");
  fixture.answer_with("Hi");
  fixture.stub = v1::Inference::NewStub(fixture.channel());
  CHECK(fixture.chat(fixture.question("Hello"), &context).content == "Hi");
}

TEST_CASE("streams that are opened and reset in a flood leave nothing", "[security][hostile]") {
  ServiceFixture fixture;
  fixture.answer_without_end();
  const std::string question =
      grpc_frame(ServiceFixture::question("Hello").SerializeAsString(), false);
  const PeakMemory memory;
  for (int c = 0; c < 4; ++c) {
    RawConnection client(fixture.server.address());
    client.begin();
    for (uint32_t i = 0; i < 1500; ++i) {
      const uint32_t stream = 2 * i + 1;
      if (!client.headers(stream, kChat, {})) break;
      if (i % 2 == 0 && !client.data(stream, question, true)) break;
      if (!client.reset(stream)) break;
    }
  }
  REQUIRE(eventually([&] { return fixture.front_end.status().streams_open() == 0; }));
  REQUIRE(fixture.engine.wait_idle());
  CHECK(memory.growth() < 200 * kMiB);
  CHECK(serves(fixture));
}

TEST_CASE("calls that never send their message, and pings without end, hold up nobody",
          "[security][hostile]") {
  GrpcServerOptions options;
  options.max_streams = 200;
  ServiceFixture fixture(1024, options);
  const PeakMemory memory;
  std::vector<std::unique_ptr<RawConnection>> clients;
  for (int c = 0; c < 20; ++c) {
    clients.push_back(std::make_unique<RawConnection>(fixture.server.address()));
    clients.back()->begin();
    for (uint32_t i = 0; i < 100; ++i) {
      clients.back()->headers(2 * i + 1, kChat, {});
      // The beginning of a message of 4 MiB.
      clients.back()->data(2 * i + 1, std::string("\0\0\x40\0\0", 5) + std::string(100, 'x'), false);
    }
  }
  RawConnection pinger(fixture.server.address());
  pinger.begin();
  for (int i = 0; i < 100 && pinger.ping(); ++i) {
  }
  CHECK(pinger.closed(20));  // too_many_pings
  CHECK(memory.growth() < 200 * kMiB);
  CHECK(serves(fixture));
  clients.clear();
  CHECK(serves(fixture));
}

TEST_CASE("more connections than there are file descriptors end nothing", "[security][hostile]") {
  ServiceFixture fixture;
  fixture.answer_with("Hi");
  REQUIRE(fixture.chat(fixture.question("Hello")).content == "Hi");
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const int highest = dup(0);
  close(highest);
  // Room for some connections beside what the listener keeps back, less than come.
  rlimit narrow = before;
  narrow.rlim_cur = static_cast<rlim_t>(highest) + 64 + 40;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &narrow) == 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(
      std::stoi(fixture.server.address().substr(fixture.server.address().find(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const pid_t child = fork();
  if (child == 0) {
    // Only system calls: the parent has threads.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close_range(3, ~0u, 0);
    for (int i = 0; i < 90; ++i) {
      connect(socket(AF_INET, SOCK_STREAM, 0), reinterpret_cast<const sockaddr*>(&to), sizeof to);
    }
    for (;;) pause();
  }
  // The connection that was there goes on while the others pile up.
  for (int i = 0; i < 20; ++i) {
    CHECK(fixture.chat(fixture.question("Hello")).content == "Hi");
    std::this_thread::sleep_for(milliseconds(20));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(serves(fixture));
}

TEST_CASE("products of numbers are refused before anything is made of them", "[security][hostile]") {
  ServiceFixture fixture;
  const PeakMemory memory;
  struct Row {
    const char* says;
    std::function<void(v1::SamplingParams&)> set;
  };
  const std::vector<Row> table = {
      {"sampling.n", [](auto& s) { s.set_n(1'000'000); }},
      {"sampling.n", [](auto& s) { s.set_n(-1); }},
      {"sampling.max_tokens", [](auto& s) { s.set_max_tokens(-1); }},
      {"sampling.max_tokens", [](auto& s) { s.set_max_tokens(INT32_MAX); }},
      {"sampling.logprobs", [](auto& s) { s.set_logprobs(INT32_MAX); }},
      {"sampling.logprobs", [](auto& s) { s.set_logprobs(-1); }},
      {"sampling.top_k", [](auto& s) { s.set_top_k(-5); }},
      {"sampling.stop",
       [](auto& s) {
         for (int i = 0; i < 100'000; ++i) s.add_stop("s");
       }},
      {"sampling.stop", [](auto& s) { s.add_stop(std::string(kMiB, 's')); }},
      {"sampling.stop", [](auto& s) { s.add_stop(""); }},
      {"sampling.stop_token_ids", [](auto& s) { s.add_stop_token_ids(INT32_MAX); }},
      {"sampling.logit_bias",
       [](auto& s) {
         for (int i = 0; i < 100'000; ++i) (*s.mutable_logit_bias())[i] = 1;
       }},
      {"n * max_tokens",
       [](auto& s) {
         s.set_n(64);
         s.set_logprobs(20);
         s.set_max_tokens(60'000);
       }},
  };
  fixture.engine.set_context(65536);
  for (const Row& row : table) {
    INFO(row.says);
    v1::ChatRequest request = fixture.question("Hello");
    row.set(*request.mutable_sampling());
    const auto answer = fixture.chat(request);
    CHECK(answer.status.error_code() == StatusCode::INVALID_ARGUMENT);
    CHECK_THAT(answer.status.error_message(), Contains(row.says));
    // A message's own words come back short or not at all.
    CHECK(answer.status.error_message().size() < 500);
  }
  CHECK(fixture.engine.submitted().empty());
  CHECK(memory.growth() < 200 * kMiB);
  CHECK(serves(fixture));
}

}  // namespace
}  // namespace shoal
