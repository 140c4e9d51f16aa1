// `shoal serve` as an operator runs it with keys: what its log tells, and where its processes listen.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "runtime/cache/page_key.h"
#include "shoal/v1/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"
#include "tests/support/temp_dir.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using grpc::StatusCode;

const std::string kKey = "shoal-KeyThatNobodyMustSee", kWrong = "shoal-WrongKeyThatNobodyMustSee";
const std::string kPrompt = "PromptThatNobodyMustSee";

std::set<std::string> socket_inodes(pid_t pid) {
  std::set<std::string> inodes;
  std::error_code gone;
  for (const auto& fd : std::filesystem::directory_iterator(
           "/proc/" + std::to_string(pid) + "/fd", gone)) {
    const std::string target = std::filesystem::read_symlink(fd.path(), gone).string();
    if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
  }
  return inodes;
}

// Addresses, as /proc writes them, on which these sockets listen.
std::vector<std::string> listening(const std::set<std::string>& inodes) {
  std::vector<std::string> addresses;
  for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream file(table);
    std::string line;
    std::getline(file, line);  // the heading
    while (std::getline(file, line)) {
      std::istringstream words(line);
      std::string slot, local, remote, state, queues, timer, retransmits, user, timeout, inode;
      words >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> user >> timeout >>
          inode;
      if (state == "0A" && inodes.contains(inode)) addresses.push_back(local.substr(0, local.find(':')));
    }
  }
  return addresses;
}

bool is_loopback(const std::string& address) {
  // Words of four bytes in the machine's order: 127.x.y.z ends with 7F.
  if (address.size() == 8) return address.ends_with("7F");
  return address == "00000000000000000000000001000000" ||
         (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"));
}

TEST_CASE("with keys neither keys nor prompts are in the log; front end and ranks listen on loopback only") {
  const TempDir dir;
  const std::string file = dir.path() + "/keys";
  std::ofstream(file) << "{\"name\": \"tenant-7\", \"sha256\": \"" << to_hex(sha256(bytes_of(kKey)))
                      << "\"}\n";
  setenv("SHOAL_API_KEY", "shoal-AnotherKeyThatNobodyMustSee", 1);
  ShoalProcess server({"serve", demo_model(), "--tensor-parallel-size", "2", "--port", "0",
                       "--threads-per-rank", "1", "--kv-cache-tokens", "4096", "--api-key-file", file,
                       "--log-level", "trace", "--log-requests"});
  unsetenv("SHOAL_API_KEY");
  const std::string ready = server.wait_line("try: shoal chat", 300);
  REQUIRE_FALSE(ready.empty());
  const size_t at = ready.find("--server ") + 9;
  const std::string address = ready.substr(at, ready.find(' ', at) - at);
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto stub = v1::Inference::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args));
  const auto complete = [&](const std::string& key, const v1::CompleteRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
    const auto reader = stub->Complete(&context, request);
    v1::CompleteResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  };
  v1::CompleteRequest request;
  request.set_text(kPrompt);
  request.mutable_sampling()->set_max_tokens(4);
  CHECK(complete(kKey, request).ok());
  CHECK(complete("", request).error_code() == StatusCode::UNAUTHENTICATED);
  CHECK(complete(kWrong, request).error_code() == StatusCode::UNAUTHENTICATED);
  v1::CompleteRequest wrong = request;
  wrong.mutable_sampling()->set_top_p(7);
  const grpc::Status refused = complete(kKey, wrong);
  CHECK(refused.error_code() == StatusCode::INVALID_ARGUMENT);
  CHECK_THAT(refused.error_message(), !Contains(kPrompt));
  wrong = request;
  wrong.mutable_sampling()->add_stop(kPrompt + std::string(1000, 's'));
  CHECK_THAT(complete(kKey, wrong).error_message(), Contains("stop") && !Contains(kPrompt));
  wrong = request;
  wrong.set_model(std::string(100'000, 'm') + kPrompt);
  CHECK(complete(kKey, wrong).error_message().size() < 500);
  wrong = request;
  for (int i = 0; i < 10'000; ++i) wrong.mutable_text()->append(" " + kPrompt);
  CHECK_THAT(complete(kKey, wrong).error_message(), !Contains(kPrompt));

  std::vector<pid_t> processes = descendants(server.pid());
  CHECK(processes.size() >= 3);  // mpirun and two ranks
  processes.push_back(server.pid());
  std::set<std::string> inodes;
  for (const pid_t pid : processes) {
    // Open MPI's mpirun keeps its port for other nodes on every address, whatever interface it is told
    // (docs/serving.md, "Between ranks"): only what is ours is held to loopback here.
    std::string name;
    std::getline(std::ifstream("/proc/" + std::to_string(pid) + "/comm") >> std::ws, name);
    if (name != "mpirun") inodes.merge(socket_inodes(pid));
  }
  const std::vector<std::string> addresses = listening(inodes);
  CHECK_FALSE(addresses.empty());
  for (const std::string& a : addresses) {
    INFO(a);
    CHECK(is_loopback(a));
  }

  server.send(SIGTERM);
  CHECK(server.wait_exit(60) == 0);
  const std::string log = server.output();
  CHECK_THAT(log, Contains("Refused a call of /shoal.v1.Inference/Complete"));
  CHECK_THAT(log, Contains("client=tenant-7"));
  CHECK_THAT(log, !Contains("NobodyMustSee"));
}

}  // namespace
}  // namespace shoal
