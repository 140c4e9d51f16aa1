#include "server/rank_world.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

#include <catch2/catch.hpp>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::string setting(const RankWorld& world, const std::string& name) {
  std::string value = "(none)";
  int found = 0;
  for (const std::string& entry : world.environment) {
    if (!entry.starts_with(name + "=")) continue;
    value = entry.substr(name.size() + 1);
    ++found;
  }
  CHECK(found <= 1);
  return value;
}

std::string refusal(const RankPlacement& placement, int ranks) {
  try {
    check_placement(placement, ranks);
  } catch (const InvalidInput& error) {
    return error.what();
  }
  return "accepted";
}

// Variables of this test alone.
struct Variable {
  Variable(const char* name, const char* value) : name(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name); }
  const char* name;
};

TEST_CASE("ranks of one node listen on loopback only, whatever they would choose themselves") {
  const RankWorld world = make_rank_world({}, 2, {"shoal", "rank"}, "/dev/shm/shoal-x");
  CHECK(joined(world.command) == "mpirun --quiet -n 2 --map-by slot shoal rank");
  CHECK(setting(world, "OMPI_MCA_oob_tcp_if_include") == "lo");
  CHECK(setting(world, "OMPI_MCA_btl") == "self,vader");
  CHECK(setting(world, "OMPI_MCA_pml") == "ob1");
  CHECK(setting(world, "NCCL_SOCKET_IFNAME") == "=lo");
  CHECK(setting(world, "OMPI_MCA_orte_tmpdir_base") == "/dev/shm/shoal-x");
  CHECK(setting(world, "OMPI_MCA_btl_vader_backing_directory") == "/dev/shm/shoal-x");
  // Shared memory on a disk would be written to it.
  CHECK(setting(make_rank_world({}, 2, {"x"}, "/tmp/shoal-x"), "OMPI_MCA_btl_vader_backing_directory") == "(none)");
  CHECK(joined(make_rank_world({}, 1, {"shoal", "rank"}, "").command) == "shoal rank");
}

TEST_CASE("ranks of several nodes use the named interface and the agent, and get no secrets") {
  const Variable key("SHOAL_API_KEY", "secret"), notify("NOTIFY_SOCKET", "/run/systemd/notify"),
      debug("NCCL_DEBUG", "INFO");
  const RankPlacement placement{.hosts = "node0:4,node1:4", .launch_agent = "/opt/agent -v", .rank_interface = "ib0"};
  CHECK(several_nodes(placement));
  const RankWorld world = make_rank_world(placement, 8, {"shoal", "rank"}, "/dev/shm/shoal-x");
  CHECK_THAT(joined(world.command), Contains("mpirun -n 8 --map-by slot --host node0:4,node1:4 "));
  CHECK_THAT(joined(world.command), Contains(" -x NCCL_DEBUG ") && Contains(" -x NCCL_SOCKET_IFNAME "));
  CHECK_THAT(joined(world.command), !Contains("secret") && !Contains("API_KEY"));
  CHECK(setting(world, "OMPI_MCA_oob_tcp_if_include") == "ib0");
  CHECK(setting(world, "OMPI_MCA_btl_tcp_if_include") == "ib0");
  CHECK(setting(world, "NCCL_SOCKET_IFNAME") == "=ib0");
  CHECK(setting(world, "OMPI_MCA_btl") == "self,vader,tcp");
  CHECK(setting(world, "OMPI_MCA_plm_rsh_agent") == "/opt/agent -v");
  CHECK(setting(world, "OMPI_MCA_plm") == "rsh");
  CHECK(setting(world, "OMPI_MCA_oob_tcp_keepalive_time") == "10");
  CHECK(setting(world, "OMPI_MCA_orte_tmpdir_base") == "(none)");  // of other nodes
  CHECK(setting(world, "SHOAL_API_KEY") == "(none)");
  CHECK(setting(world, "NOTIFY_SOCKET") == "(none)");
  // What a site has set about transports and patience stays.
  const Variable pml("OMPI_MCA_pml", "ucx"), patience("OMPI_MCA_oob_tcp_keepalive_time", "5");
  const RankWorld other = make_rank_world(placement, 8, {"x"}, "");
  CHECK(setting(other, "OMPI_MCA_pml") == "ucx");
  CHECK(setting(other, "OMPI_MCA_oob_tcp_keepalive_time") == "5");
}

TEST_CASE("an allocation is seen by what its launcher has left in the environment") {
  CHECK_FALSE(several_nodes({}));
  {
    const Variable slurm("SLURM_JOB_NUM_NODES", "2");
    CHECK(several_nodes({}));
    CHECK_THAT(refusal({}, 8), Contains("--rank-interface"));
    CHECK(refusal({}, 1) == "accepted");
  }
  {
    const Variable slurm("SLURM_JOB_NUM_NODES", "1");
    CHECK_FALSE(several_nodes({}));
  }
  const Variable operators("OMPI_MCA_orte_default_hostfile", "/etc/mpi/hostfile");
  CHECK(several_nodes({}));
}

TEST_CASE("a placement that cannot be is refused with what is wrong") {
  CHECK_THAT(refusal({.hosts = "localhost:2,b:1"}, 2), Contains("3 ranks in all") && Contains("--tensor-parallel-size is 2"));
  CHECK_THAT(refusal({.hosts = "localhost:0"}, 1), Contains("NODE:RANKS"));
  CHECK_THAT(refusal({.hosts = "localhost:1x"}, 1), Contains("\"localhost:1x\""));
  CHECK_THAT(refusal({.hosts = "localhost:99999999999999"}, 1), Contains("NODE:RANKS"));
  CHECK_THAT(refusal({.hosts = "-x:1"}, 1), Contains("NODE:RANKS"));
  CHECK_THAT(refusal({.hosts = "a;reboot:1"}, 1), Contains("NODE:RANKS"));
  CHECK_THAT(refusal({.hosts = "localhost:1,,localhost:1"}, 2), Contains("NODE:RANKS"));
  // 192.0.2.0/24 is nobody's.
  CHECK_THAT(refusal({.hosts = "192.0.2.1:1,localhost:1", .rank_interface = "lo"}, 2), Contains("192.0.2.1, is not this one"));
  CHECK_THAT(refusal({.hosts = "localhost:1,192.0.2.1:1"}, 2), Contains("--rank-interface NAME"));
  CHECK_THAT(refusal({.hosts = "localhost:1,192.0.2.1:1", .rank_interface = "nosuch0"}, 2),
             Contains("\"nosuch0\"") && Contains("lo"));
  CHECK(refusal({.hosts = "localhost:1,192.0.2.1:1", .rank_interface = "lo"}, 2) == "accepted");
  CHECK(refusal({.hosts = "127.0.0.1:2"}, 2) == "accepted");
  CHECK_THAT(refusal({.hosts = "localhost:1", .hostfile = "x"}, 1), Contains("give one of them"));
  CHECK_THAT(refusal({.hostfile = "/no/such"}, 2), Contains("no such file"));

  const std::filesystem::path file = std::filesystem::temp_directory_path() / ("shoal-hosts-" + std::to_string(getpid()));
  std::ofstream(file) << "# nodes\n\nlocalhost slots=4  # here\n192.0.2.1 slots=4\n";
  CHECK(refusal({.hostfile = file, .rank_interface = "lo"}, 8) == "accepted");
  std::ofstream(file) << "192.0.2.1 slots=4\n";
  CHECK_THAT(refusal({.hostfile = file, .rank_interface = "lo"}, 8), Contains("192.0.2.1, is not this one"));
  std::ofstream(file) << "# none\n";
  CHECK_THAT(refusal({.hostfile = file, .rank_interface = "lo"}, 8), Contains("names no node"));
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace shoal
