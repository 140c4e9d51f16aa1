// Tests 7, 8 and 18: clients that vanish, do not read, or speak no gRPC.
#include <catch2/catch.hpp>
#include <signal.h>
#include <sys/resource.h>
#include <zlib.h>

#include <chrono>
#include <thread>

#include "tests/faults/raw_connection.h"
#include "tests/faults/server.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
constexpr char kComplete[] = "/shoal.v1.Inference/Complete";
constexpr char kGetModel[] = "/shoal.v1.Inference/GetModel";
// RFC 9113, 6.5.2.
constexpr uint16_t kInitialWindowSize = 4;

const FaultServer& server() {
  static const FaultServer server({"--stream-stall-timeout", "2"});
  return server;
}

v1::CompleteRequest endless() { return greedy(some_ids(3, 20), 2000); }

// Every case: the neighbour's stream is what it is without the fault, and the server idles again.
struct Beside {
  Beside() : client(server().connect()), neighbour(server(), 800), idle(server(), *client) { neighbour.start(); }
  void check(int64_t rss_slack = int64_t{64} << 20) {
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference(rss_slack) == "");
    CHECK(client->complete(greedy({300, 301}, 2)).code == Code::kOk);
    CHECK(client->health() == 1);
  }
  std::unique_ptr<FaultClient> client;
  Neighbour neighbour;
  Idle idle;
};

TEST_CASE("7: a client that is killed gives back at once what it held") {
  Beside beside;
  {
    ShoalProcess chat({"chat", "--server", server().address, "--max-tokens", "1500", "--temperature", "1", "--seed",
                       "3", "Tell a very long story"});
    CHECK(eventually([&] { return beside.idle.status().streams_open() == 2; }, 20));
    chat.send(SIGKILL);
    chat.wait_exit(kPatienceSeconds);
  }
  // A connection that is torn down in the middle of a stream, without a word.
  for (int i = 0; i < 20; ++i) {
    RawConnection raw(server().port);
    raw.start();
    raw.request(kComplete, endless().SerializeAsString());
    if (i % 2 == 0) raw.read_frame(5);
  }
  beside.check();
}

// By hand: it takes 40 s (keepalive of 30 s, and 10 s for the answer). `faults_wire_test "[slow]"`
TEST_CASE("7: a host that is gone, so that nothing answers, is found by keepalive", "[.][slow]") {
  const FaultServer own({"--max-num-seqs", "1"});
  const auto client = own.connect();
  Idle idle(own, *client);
  RawConnection raw(own.port);
  raw.start({{kInitialWindowSize, INT32_MAX}});
  // It takes what comes, as a network's buffers would, and says nothing.
  const std::string window("\x3f\xff\x00\x00", 4);
  raw.send(Frame{.type = FrameType::kWindowUpdate, .payload = window});
  raw.request(kComplete, endless().SerializeAsString());
  REQUIRE(eventually([&] { return client->status().streams_open() == 1; }, 5));
  // A second one that waits behind it, on the same connection, without end.
  for (int i = 0; i < 200; ++i) raw.request(kComplete, endless().SerializeAsString());
  const auto begin = std::chrono::steady_clock::now();
  bool closed = false;
  while (!closed && std::chrono::steady_clock::now() - begin < std::chrono::seconds(120)) {
    const auto frame = raw.read_frame(1, /*polite=*/false);
    closed = (frame && frame->type == FrameType::kGoAway) || (!frame && raw.closes_within(0.2));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  WARN("found after " << seconds << " s");
  CHECK(closed);
  CHECK(idle.difference() == "");
}

TEST_CASE("8: a reader that does not read holds up only itself, and is ended after --stream-stall-timeout") {
  Beside beside;
  constexpr int kReaders = 20;
  std::vector<std::unique_ptr<RawConnection>> readers;
  v1::CompleteRequest request = endless();
  request.mutable_sampling()->set_logprobs(20);  // some 500 bytes a token
  std::vector<uint32_t> streams;
  for (int i = 0; i < kReaders; ++i) {
    readers.push_back(std::make_unique<RawConnection>(server().port));
    readers.back()->start({{kInitialWindowSize, 100}});
    streams.push_back(readers.back()->request(kComplete, request.SerializeAsString()));
  }
  CHECK(eventually([&] { return beside.idle.status().streams_open() > kReaders; }, 30));
  CHECK(eventually([&] { return beside.idle.ends().failed == kReaders; }));
  for (int i = 0; i < kReaders; ++i) {
    // 100 bytes of data at most, then the reset.
    const std::string all = readers[i]->read_stream(streams[i], kPatienceSeconds);
    CHECK(all.size() < 1000);
  }
  // One that reads a little each second is slow, not gone.
  RawConnection slow(server().port);
  slow.start({{kInitialWindowSize, 4000}});
  const uint32_t stream = slow.request(kComplete, greedy({300, 301}, 60).SerializeAsString());
  std::this_thread::sleep_for(std::chrono::milliseconds(1000));
  slow.send(Frame{.type = FrameType::kWindowUpdate, .stream = stream, .payload = std::string("\0\1\0\0", 4)});
  CHECK_THAT(slow.read_stream(stream, kPatienceSeconds), Contains("grpc-status"));
  readers.clear();  // their connections are theirs to close
  beside.check();
}

TEST_CASE("18: bytes that are no HTTP/2 end their own connection only") {
  Beside beside;
  std::string garbage(100'000, '\0');
  for (size_t i = 0; i < garbage.size(); ++i) garbage[i] = static_cast<char>(i * 2654435761u >> 13);
  const std::vector<std::string> openings = {
      garbage,
      "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
      "POST /shoal.v1.Inference/Chat HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + garbage.substr(0, 500),  // half a TLS hello
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + garbage,
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + std::string("\xff\xff\xff\x01\x04\x00\x00\x00\x01", 9),
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + std::string("\x00\x00\x06\x04\x00\x00\x00\x00\x01\x00\x04\xff\xff\xff\xff", 15),
  };
  for (const std::string& opening : openings) {
    RawConnection raw(server().port);
    raw.send(opening);
    raw.send(opening);
    INFO(opening.substr(0, 20));
    // Some wait for more; none is answered as if it were right.
    CHECK(raw.receive(0.2).find("grpc-status\x01""0") == std::string::npos);
  }
  beside.check();
}

TEST_CASE("18: methods and messages that are not ours") {
  Beside beside;
  FaultClient& client = *beside.client;
  for (const char* method : {"/shoal.v1.Inference/Nothing", "/no.such.Service/Chat", "/", "//", "/shoal.v1.Inference/"}) {
    INFO(method);
    CHECK(client.raw(method, "x").code == Code::kUnimplemented);
  }
  // The engine's own protocol is not on this port.
  CHECK(client.raw("/shoal.engine.v1.Engine/Run", "").code == Code::kUnimplemented);
  CHECK(client.raw(kComplete, std::string(size_t{6} << 20, 'x')).code == Code::kResourceExhausted);

  RawConnection raw(server().port);
  raw.start();
  const auto answer = [&](const std::string& bytes, const std::vector<std::pair<std::string, std::string>>& headers = {}) {
    const uint32_t stream = raw.request(kComplete, "", headers, /*end_stream=*/false);
    raw.send(Frame{.type = FrameType::kData, .flags = kEndStream, .stream = stream, .payload = bytes});
    return raw.read_stream(stream, 30);
  };
  // A length that the frame does not have, of 4 GiB, and compression that was not announced.
  CHECK_THAT(answer(std::string("\0\0\0\1\0", 5)), Contains("grpc-status") || Contains(std::string(3, '\0')));
  answer(std::string("\0\xff\xff\xff\xff", 5) + "abc");
  answer(grpc_message(greedy({300}, 1).SerializeAsString(), /*compressed=*/true));
  answer(std::string("\x07\0\0\0\0", 5));
  // What it says is gzip is not.
  answer(grpc_message("not gzip at all", true), {{"grpc-encoding", "gzip"}});
  answer(grpc_message("x"), {{"grpc-encoding", "no-such"}});
  answer("", {{"content-type", "text/html"}});
  beside.check();
}

TEST_CASE("18: a compressed bomb is refused before it fills the memory") {
  Beside beside;
  // 1 GB of zeros is 1 MB of gzip.
  std::string bomb;
  z_stream z{};
  REQUIRE(deflateInit2(&z, Z_BEST_COMPRESSION, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string zeros(1 << 20, '\0'), out(1 << 16, '\0');
  constexpr int kMegabytes = 1024;
  for (int i = 0; i <= kMegabytes; ++i) {
    z.next_in = reinterpret_cast<Bytef*>(zeros.data());
    z.avail_in = i < kMegabytes ? static_cast<uInt>(zeros.size()) : 0;
    do {
      z.next_out = reinterpret_cast<Bytef*>(out.data());
      z.avail_out = static_cast<uInt>(out.size());
      deflate(&z, i < kMegabytes ? Z_NO_FLUSH : Z_FINISH);
      bomb.append(out, 0, out.size() - z.avail_out);
    } while (z.avail_out == 0);
  }
  deflateEnd(&z);
  RawConnection raw(server().port);
  raw.start();
  const uint32_t stream = raw.request(kComplete, "", {{"grpc-encoding", "gzip"}}, false);
  const std::string data = grpc_message(bomb, true);
  // The window is 64 KiB and grows as the server reads.
  raw.send(Frame{.type = FrameType::kWindowUpdate, .payload = std::string("\x3f\xff\0\0", 4)});
  std::thread reader;
  for (size_t at = 0; at < data.size(); at += 16384) {
    const bool last = at + 16384 >= data.size();
    if (!raw.send(Frame{.type = FrameType::kData, .flags = last ? kEndStream : uint8_t{0}, .stream = stream,
                        .payload = data.substr(at, 16384)})) {
      break;
    }
  }
  raw.read_stream(stream, 20);
  beside.check();
}

TEST_CASE("18: headers: many, huge, and -bin that is no base64") {
  Beside beside;
  // What this gRPC does with them: it closes the connection; so each has its own. Others go on.
  const std::vector<std::vector<std::pair<std::string, std::string>>> table = {
      {{"x-bin", "!!!not base64!!!"}},
      {{"x-big", std::string(100'000, 'x')}},
      std::vector<std::pair<std::string, std::string>>(2000, {"x-many", std::string(50, 'y')}),
      {{"grpc-timeout", std::string(10'000, '9')}},
      {{"", "no name"}},
      {{"Upper", "case"}},
      {{"x-nul", std::string("a\0b\r\nc: d", 9)}},
      {{":path", "/twice"}},
      {{"x-request-id", std::string(60'000, 'i')}},
  };
  for (const auto& headers : table) {
    RawConnection raw(server().port);
    raw.start();
    const uint32_t stream = raw.request(kGetModel, "", headers);
    INFO(headers[0].first);
    CHECK(raw.read_stream(stream, 5).size() < 100'000);
  }
  // Below the limit of 64 KiB it is an ordinary call.
  CHECK(beside.client->raw(kGetModel, "", nullptr, {.metadata = {{"x-big", std::string(50'000, 'x')}}}).code == Code::kOk);
  beside.check();
}

TEST_CASE("18: ten thousand streams that are reset at once, and as many pings") {
  const std::string cancel("\0\0\0\x08", 4);
  const std::string request = greedy({300, 301}, 5).SerializeAsString();
  const auto flood = [&] {
    int opened = 0;
    for (int connection = 0; connection < 20; ++connection) {
      RawConnection raw(server().port);
      raw.start();
      for (int i = 0; i < 500; ++i, ++opened) {
        const uint32_t stream = raw.request(kComplete, request);
        if (!raw.send(Frame{.type = FrameType::kReset, .stream = stream, .payload = cancel})) break;
      }
    }
    return opened;
  };
  const int64_t before = vitals(server().process.pid()).rss;
  flood();  // what the allocator keeps of a peak is no leak: a second flood must not add to it
  const int64_t after = vitals(server().process.pid()).rss;
  Beside beside;
  CHECK(flood() == 10'000);
  WARN("front end: " << (before >> 20) << " MiB, " << (after >> 20) << " after a flood, "
                     << (vitals(server().process.pid()).rss >> 20) << " after another");
  RawConnection pings(server().port);
  pings.start();
  int sent = 0;
  while (sent < 10'000 && pings.send(Frame{.type = FrameType::kPing, .payload = "12345678"})) ++sent;
  CHECK(pings.closes_within(30));  // too_many_pings
  // The peak of a flood, once in each of the allocator's arenas: with MALLOC_ARENA_MAX=1 six floods leave what
  // two do (151 MiB).
  beside.check(int64_t{384} << 20);
}

TEST_CASE("18: a thousand idle connections, and more than there are file descriptors") {
  Beside beside;
  {
    std::vector<std::unique_ptr<RawConnection>> idle;
    for (int i = 0; i < 1000; ++i) {
      idle.push_back(std::make_unique<RawConnection>(server().port));
      if (i % 2 == 0) idle.back()->start();
    }
    CHECK(server().connect()->complete(greedy({300, 301}, 2)).code == Code::kOk);
  }
  beside.check();

  // A server that may open few files: it cannot take more connections, goes on with those it has, and takes new ones
  // when there is room again.
  const FaultServer small({"--stream-stall-timeout", "2"});
  const auto client = small.connect();
  CHECK(client->complete(greedy({300, 301}, 2)).code == Code::kOk);
  const rlim_t limit = static_cast<rlim_t>(vitals(small.process.pid()).fds) + 150;
  const rlimit few{limit, limit};
  REQUIRE(prlimit(small.process.pid(), RLIMIT_NOFILE, &few, nullptr) == 0);
  {
    std::vector<std::unique_ptr<RawConnection>> many;
    for (int i = 0; i < 400; ++i) many.push_back(std::make_unique<RawConnection>(small.port));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    CHECK(client->complete(greedy({300, 301}, 200)).code == Code::kOk);
    const double before = cpu_seconds(small.process.pid());
    std::this_thread::sleep_for(std::chrono::seconds(1));
    WARN("processor seconds in one second without descriptors: " << cpu_seconds(small.process.pid()) - before);
  }
  CHECK(eventually([&] {
    return small.connect()->complete(greedy({300, 301}, 2), {.deadline_seconds = 5}).code == Code::kOk;
  }, 30));
}

}  // namespace
}  // namespace shoal
