// One model over two nodes: two network namespaces with host names of their own, joined by one link. What goes
// from one to the other goes over that link or not at all. Skipped where there are no namespaces to be had.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/server_process.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using std::chrono::steady_clock;

constexpr int kPatience = 120;  // seconds; the machine may be building beside

struct Output {
  int code = -1;
  std::string text;
};

Output run(const std::string& command) {
  Output output;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) output.text.append(buffer.data(), n);
  const int status = pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return output;
}

// Namespaces and files are named after this process, so that several tests do not meet.
class TwoNodes {
 public:
  TwoNodes() : name_("shoal" + std::to_string(getpid())), agent_(std::filesystem::temp_directory_path() / (name_ + "-agent")) {
    const Output made = run("set -e; for n in a b; do ip netns add " + name_ + "$n; done; ip link add link0 netns " +
                            name_ + "a type veth peer name link0 netns " + name_ + "b; i=1; for n in a b; do " +
                            "ip -n " + name_ + "$n link set lo up; ip -n " + name_ + "$n addr add 10.99.0.$i/24 dev link0; " +
                            "ip -n " + name_ + "$n link set link0 up; i=2; done; unshare --uts true");
    why_not_ = made.code == 0 ? "" : made.text.substr(0, made.text.find('\n'));
    // As ssh: AGENT NODE WORDS..., where the words are for a shell.
    std::ofstream(agent_) << "#!/bin/sh\nshift\nexec ip netns exec " << name_
                          << "b unshare --uts sh -c \"hostname node-b; exec $*\"\n";
    chmod(agent_.c_str(), 0755);
  }
  ~TwoNodes() {
    // Daemons on a node that was cut off go when TCP gives up, which takes minutes.
    run("for n in a b; do ip netns pids " + name_ + "$n | xargs -r kill -9; ip netns del " + name_ + "$n; done");
    std::filesystem::remove(agent_);
  }
  std::string why_not() const { return why_not_; }
  std::string agent() const { return agent_; }
  std::vector<std::string> on_a() const { return {"ip", "netns", "exec", name_ + "a"}; }
  std::string on_a(const std::string& command) const { return "ip netns exec " + name_ + "a " + command; }
  uint64_t bytes_over_link() const {
    const Output output = run(on_a("cat /sys/class/net/link0/statistics/tx_bytes"));
    return std::strtoull(output.text.c_str(), nullptr, 10);
  }
  // What is sent from now on arrives nowhere, and nobody is told: a wrong address below IP.
  void cut() const {
    const std::string wrong = " lladdr 02:00:00:00:00:01 dev link0 nud permanent";
    REQUIRE(run("ip -n " + name_ + "a neigh replace 10.99.0.2" + wrong + "; ip -n " + name_ +
                "b neigh replace 10.99.0.1" + wrong).code == 0);
  }
  // Which of two processes are on other nodes.
  bool on_b(pid_t pid) const {
    struct stat process {}, node {};
    return stat(("/proc/" + std::to_string(pid) + "/ns/net").c_str(), &process) == 0 &&
           stat(("/run/netns/" + name_ + "b").c_str(), &node) == 0 && process.st_ino == node.st_ino;
  }

 private:
  const std::string name_;
  const std::filesystem::path agent_;
  std::string why_not_;
};

class Server {
 public:
  Server(const TwoNodes& nodes, std::vector<std::string> more)
      : nodes_(nodes), process_(arguments(std::move(more)), nodes.on_a()) {
    const std::string ready = process_.wait_line("Ready: ", kPatience), mark = "--server ";
    INFO(process_.output());
    const size_t begin = ready.find(mark);
    REQUIRE(begin != std::string::npos);
    address_ = ready.substr(begin + mark.size());
    address_ = address_.substr(0, address_.find(' '));
  }
  std::string chat(int max_tokens) const {
    return nodes_.on_a(SHOAL_EXECUTABLE " chat --server " + address_ + " --temperature 0 --timeout 100 --max-tokens " +
                       std::to_string(max_tokens) + " 'Tell me about the sea'");
  }
  ShoalProcess& process() { return process_; }

 private:
  static std::vector<std::string> arguments(std::vector<std::string> more) {
    std::vector<std::string> all = {"serve", "--model", demo_model(), "--tensor-parallel-size", "2", "--port", "0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  const TwoNodes& nodes_;
  ShoalProcess process_;
  std::string address_;
};

int ranks_on_b(const TwoNodes& nodes, pid_t server) {
  int count = 0;
  for (const pid_t pid : descendants(server)) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline", std::ios::binary);
    std::string name;
    std::getline(file, name, '\0');
    if (name == SHOAL_EXECUTABLE && nodes.on_b(pid)) ++count;
  }
  return count;
}

TEST_CASE("a model over two nodes answers as on one, and a cut link ends calls instead of hanging them") {
  const TwoNodes nodes;
  if (!nodes.why_not().empty()) SHOAL_SKIP(("no network namespaces here: " + nodes.why_not()).c_str());
  std::string expected;
  {
    Server one(nodes, {});
    const uint64_t before = nodes.bytes_over_link();
    const Output answer = run(one.chat(24));
    INFO(answer.text);
    REQUIRE(answer.code == 0);
    // Ranks of one node keep to themselves; IPv6 says a few words when a link comes up.
    CHECK(nodes.bytes_over_link() - before < 5'000);
    expected = answer.text;
    one.process().send(SIGTERM);
    CHECK(one.process().wait_exit(kPatience) == 0);
  }
  // So that daemons that were cut off end within seconds (25 by default).
  const char* probes[][2] = {{"OMPI_MCA_oob_tcp_keepalive_time", "2"},
                             {"OMPI_MCA_oob_tcp_keepalive_intvl", "1"},
                             {"OMPI_MCA_oob_tcp_keepalive_probes", "2"}};
  for (const auto& [name, value] : probes) setenv(name, value, 1);
  Server two(nodes, {"--hosts", "10.99.0.1:1,10.99.0.2:1", "--rank-interface", "link0", "--launch-agent",
                     nodes.agent(), "--step-timeout", "3", "--launch-timeout", "3"});
  for (const auto& [name, value] : probes) unsetenv(name);
  CHECK(ranks_on_b(nodes, two.process().pid()) == 1);
  const uint64_t before = nodes.bytes_over_link();
  const Output answer = run(two.chat(24));
  INFO(answer.text);
  CHECK(answer.code == 0);
  CHECK(answer.text == expected);
  CHECK(nodes.bytes_over_link() - before > 100'000);  // 24 steps of some 20 sums of 2 to 200 KB

  // A cut link says nothing: a step that needs it does not end. The ranks are given up after --step-timeout or by
  // TCP's probes, and the call after three starts that cannot reach the other node.
  nodes.cut();
  const auto begin = steady_clock::now();
  const Output cut = run(two.chat(24));
  WARN("the call ended after " << std::chrono::duration<double>(steady_clock::now() - begin).count() << " s");
  INFO(cut.text << two.process().output());
  CHECK(cut.code != 0);
  CHECK_THAT(cut.text, Contains("engine failed"));
  CHECK(two.process().wait_exit(kPatience) == 3);
  CHECK_THAT(two.process().output(), Contains("Chat UNAVAILABLE"));
}

}  // namespace
}  // namespace shoal
