// The end of `shoal serve`: under load, in a hurry, while the model loads. What is told to systemd on the way.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "shoal/v1/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kPatience = 120;  // seconds; the machine may be building beside
// The promise is 2 s.
constexpr int kFast = 20;

std::string command_line(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline", std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  for (char& c : text) c = c == '\0' ? ' ' : c;
  return text;
}

// The rank processes of a server; mpirun's own command line has the same words in another place.
std::vector<pid_t> ranks_of(pid_t server) {
  std::vector<pid_t> ranks;
  for (const pid_t pid : descendants(server)) {
    if (command_line(pid).starts_with(SHOAL_EXECUTABLE " rank ")) ranks.push_back(pid);
  }
  return ranks;
}

// The folder of sockets and shared memory, from a rank's --socket.
std::filesystem::path folder_of(pid_t rank) {
  const std::string line = command_line(rank), mark = "--socket=";
  const size_t begin = line.find(mark) + mark.size();
  return std::filesystem::path(line.substr(begin, line.find(' ', begin) - begin)).parent_path();
}

bool eventually(const std::function<bool()>& condition) {
  for (const auto end = steady_clock::now() + std::chrono::seconds(kPatience); steady_clock::now() < end;) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return condition();
}

bool gone(pid_t pid) { return kill(pid, 0) != 0 && errno == ESRCH; }

// What a server must not leave: taken while it runs, checked when it has ended.
struct Traces {
  explicit Traces(pid_t server) {
    processes = descendants(server);
    for (const pid_t rank : ranks_of(server)) folder = folder_of(rank);
  }
  void check_gone() const {
    for (const pid_t pid : processes) {
      INFO(pid << " " << command_line(pid));
      CHECK(eventually([&] { return gone(pid); }));  // mpirun's may be ended by the kernel, a moment later
    }
    INFO(folder);
    CHECK_FALSE(folder.empty());
    CHECK_FALSE(std::filesystem::exists(folder));
  }
  std::vector<pid_t> processes;
  std::filesystem::path folder;
};

// The receiving end of sd_notify.
class Listener {
 public:
  Listener() : path_(std::filesystem::temp_directory_path() / ("shoal-notify-" + std::to_string(getpid()))) {
    std::filesystem::remove(path_);
    fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.string().copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    setenv("NOTIFY_SOCKET", path_.c_str(), 1);
    setenv("WATCHDOG_USEC", "30000000", 1);
  }
  ~Listener() {
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    close(fd_);
    std::filesystem::remove(path_);
  }
  const std::vector<std::string>& heard() {
    char buffer[4096];
    for (ssize_t n; (n = recv(fd_, buffer, sizeof buffer, MSG_DONTWAIT)) >= 0;) heard_.emplace_back(buffer, n);
    return heard_;
  }
  // Where the first message that begins so is; -1: not yet.
  int find(const std::string& begin) {
    for (size_t i = 0; i < heard().size(); ++i) {
      if (heard_[i].starts_with(begin)) return static_cast<int>(i);
    }
    return -1;
  }

 private:
  const std::filesystem::path path_;
  int fd_ = -1;
  std::vector<std::string> heard_;
};

std::string address_in(const std::string& ready) {
  const std::string mark = "--server ";
  const size_t begin = ready.find(mark);
  REQUIRE(begin != std::string::npos);
  const std::string rest = ready.substr(begin + mark.size());
  return rest.substr(0, rest.find(' '));
}

// A stream of exactly so many tokens, read on a thread of its own.
class Stream {
 public:
  Stream(const std::string& address, int max_tokens)
      : stub_(v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    v1::ChatRequest request;
    v1::Message* message = request.add_messages();
    message->set_role("user");
    message->set_content("Tell me a story");
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(kPatience));
    thread_ = std::thread([this, request] {
      const auto reader = stub_->Chat(&context_, request);
      for (v1::ChatResponse response; reader->Read(&response);) {
        begun = true;
        if (response.has_usage()) tokens = response.usage().completion_tokens();
      }
      status = reader->Finish();
    });
  }
  ~Stream() {
    if (thread_.joinable()) thread_.join();
  }
  void join() { thread_.join(); }

  std::atomic<bool> begun{false};
  int tokens = 0;       // after join(), as the next
  grpc::Status status;

 private:
  std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  std::thread thread_;
};

TEST_CASE("SIGTERM under load: running streams finish, new calls do not begin, and nothing is left") {
  Listener systemd;
  ShoalProcess server({"serve", "--model", demo_model(), "--tensor-parallel-size", "2", "--port", "0",
                       "--drain-timeout", "100"});
  const std::string address = address_in(server.wait_line("Ready: ", kPatience));
  const Traces traces(server.pid());
  CHECK(traces.processes.size() >= 3);  // mpirun and two ranks
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 8; ++i) streams.push_back(std::make_unique<Stream>(address, 150));
  REQUIRE(eventually([&] {
    for (const auto& stream : streams) {
      if (!stream->begun) return false;
    }
    return true;
  }));
  REQUIRE(eventually([&] { return systemd.find("WATCHDOG=1") >= 0; }));
  // The order of a start; ranks do not speak for the service.
  CHECK(systemd.find("EXTEND_TIMEOUT_USEC=") >= 0);
  CHECK(systemd.find("EXTEND_TIMEOUT_USEC=") < systemd.find("READY=1"));
  CHECK(systemd.find("READY=1") < systemd.find("WATCHDOG=1"));
  CHECK(systemd.find("STATUS=Serving") > systemd.find("READY=1"));

  Stream last(address, 150);  // so that the drain is not over before it was looked at
  REQUIRE(eventually([&] { return last.begun.load(); }));
  server.send(SIGTERM);
  REQUIRE_FALSE(server.wait_line("Shutting down", kPatience).empty());
  REQUIRE(eventually([&] {
    Stream late(address, 1);
    late.join();
    return late.status.error_code() == grpc::StatusCode::UNAVAILABLE;
  }));
  last.join();
  CHECK(last.status.ok());
  CHECK(last.tokens == 150);
  for (const auto& stream : streams) {
    stream->join();
    INFO(stream->status.error_message());
    CHECK(stream->status.ok());
    CHECK(stream->tokens == 150);
  }
  CHECK(server.wait_exit(kPatience) == 0);
  traces.check_gone();
  CHECK(systemd.find("STOPPING=1") > systemd.find("READY=1"));
  CHECK(systemd.heard().back().find("READY=1") == std::string::npos);
}

TEST_CASE("a second signal is fast, also when a rank is in a step that does not end") {
  ShoalProcess server({"serve", "--model", demo_model(), "--tensor-parallel-size", "2", "--port", "0",
                       "--drain-timeout", "3600"});
  const std::string address = address_in(server.wait_line("Ready: ", kPatience));
  const Traces traces(server.pid());
  const std::vector<pid_t> ranks = ranks_of(server.pid());
  REQUIRE(ranks.size() == 2);
  Stream stream(address, 400);
  REQUIRE(eventually([&] { return stream.begun.load(); }));
  kill(ranks.back(), SIGSTOP);
  server.send(SIGTERM);
  REQUIRE_FALSE(server.wait_line("Shutting down", kPatience).empty());
  const auto begin = steady_clock::now();
  server.send(SIGTERM);
  CHECK(server.wait_exit(kFast) == 0);
  WARN("ended after " << std::chrono::duration<double>(steady_clock::now() - begin).count() << " s");
  stream.join();
  CHECK(stream.status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK_THAT(stream.status.error_message(), Contains("shutting down"));
  traces.check_gone();
}

TEST_CASE("a signal while the model loads ends the server at once, and nothing is left") {
  const int signal = GENERATE(SIGTERM, SIGINT);
  ShoalProcess server({"serve", "--model", demo_model(), "--tensor-parallel-size", "2", "--port", "0"});
  // The demo model loads in a moment: a rank that is stopped loads for ever.
  std::vector<pid_t> ranks;
  REQUIRE(eventually([&] {
    ranks = ranks_of(server.pid());
    return ranks.size() == 2;
  }));
  kill(ranks.front(), SIGSTOP);
  const Traces traces(server.pid());
  const auto begin = steady_clock::now();
  server.send(signal);
  CHECK(server.wait_exit(kFast) == 0);
  WARN("ended after " << std::chrono::duration<double>(steady_clock::now() - begin).count() << " s");
  CHECK(server.output().find("Ready: ") == std::string::npos);
  traces.check_gone();
}

}  // namespace
}  // namespace shoal
