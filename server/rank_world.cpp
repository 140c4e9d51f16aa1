#include "server/rank_world.h"

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Settings = std::map<std::string, std::string>;

// The front end's alone: a rank neither speaks to systemd for the service nor has a use for keys.
constexpr const char* kNotForRanks[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "SHOAL_API_KEY"};

// What ranks on other nodes get of this environment, by the beginnings of names. Devices and cores are each
// node's own matter.
constexpr const char* kForOtherNodes[] = {"NCCL_", "UCX_", "HF_", "OMP_", "LD_LIBRARY_PATH"};

// What Open MPI needs to be told however many nodes there are.
const Settings kAlways = {
    {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
    {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
    {"OMPI_MCA_rmaps_base_oversubscribe", "1"},        // more ranks than cores is the user's choice
    {"OMPI_MCA_hwloc_base_binding_policy", "none"},    // a rank's thread pool uses several cores
    {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"},  // containers forbid ptrace-like copies
};

// Between nodes. A link that is cut says nothing: TCP's own probes find it within 10 + 3 x 5 seconds.
const Settings kBetweenNodes = {
    {"OMPI_MCA_oob_tcp_keepalive_time", "10"},
    {"OMPI_MCA_oob_tcp_keepalive_intvl", "5"},
    {"OMPI_MCA_oob_tcp_keepalive_probes", "3"},
    {"OMPI_MCA_orte_keep_fqdn_hostnames", "1"},  // a pod's short name means nothing to its neighbours
};

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0';
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

struct Node {
  std::string name;
  int ranks = 1;
};

std::vector<Node> parse_hosts(const std::string& hosts) {
  std::vector<Node> nodes;
  for (const std::string& part : split(hosts, ',')) {
    const size_t colon = part.rfind(':');
    Node node{part.substr(0, colon)};
    if (colon != std::string::npos) {
      const std::string number = part.substr(colon + 1);
      const bool digits = !number.empty() && number.size() <= 4 &&
                          number.find_first_not_of("0123456789") == std::string::npos;
      node.ranks = digits ? std::stoi(number) : 0;
    }
    // mpirun and the agent take words: a name with anything else in it would become something else.
    const bool plain = !node.name.empty() && node.name.front() != '-' &&
                       node.name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                   "0123456789.-_") == std::string::npos;
    if (!plain || node.ranks < 1) {
      throw_invalid("--hosts {}: \"{}\" is no NODE:RANKS, as in node0:4,node1:4", hosts, part);
    }
    nodes.push_back(std::move(node));
  }
  return nodes;
}

// The first node of a hostfile; the rest is for mpirun to read.
std::string first_of_hostfile(const std::string& path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string name;
    if (words >> name) return name.substr(0, name.find(':'));
  }
  throw_invalid("--hostfile {}: no such file, or it names no node", path);
}

// The bytes of an IPv4 or IPv6 address; "" of any other.
std::string address_bytes(const sockaddr* address) {
  if (address != nullptr && address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return {reinterpret_cast<const char*>(&v4->sin_addr), sizeof v4->sin_addr};
  }
  if (address != nullptr && address->sa_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
    return {reinterpret_cast<const char*>(&v6->sin6_addr), sizeof v6->sin6_addr};
  }
  return {};
}

struct Interfaces {
  std::set<std::string> names, addresses;
};

Interfaces interfaces_here() {
  Interfaces here;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) throw DeviceFault("getifaddrs: the network interfaces cannot be listed");
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    here.names.insert(i->ifa_name);
    const std::string address = address_bytes(i->ifa_addr);
    if (!address.empty()) here.addresses.insert(address);
  }
  freeifaddrs(list);
  return here;
}

bool is_this_node(const std::string& name, const Interfaces& here) {
  char own[256] = "";
  gethostname(own, sizeof own - 1);
  const std::string host = own;
  if (name == "localhost" || name == host || name == host.substr(0, host.find('.'))) return true;
  addrinfo* list = nullptr;
  if (getaddrinfo(name.c_str(), nullptr, nullptr, &list) != 0) return false;
  bool found = false;
  for (const addrinfo* i = list; i != nullptr; i = i->ai_next) {
    found |= here.addresses.contains(address_bytes(i->ai_addr));
  }
  freeaddrinfo(list);
  return found;
}

Settings settings(const RankPlacement& p, int ranks, const std::string& scratch) {
  Settings all = kAlways;
  const bool several = several_nodes(p);
  for (const auto& [name, value] : kBetweenNodes) {
    if (several && !is_set(name.c_str())) all[name] = value;
  }
  // Control plane, data plane and NCCL's bootstrap talk over what they are told and nothing else. Of one node:
  // shared memory, and loopback for what starts the ranks.
  // (Commands that serve nobody and stand in an allocation of several nodes are not told.)
  const std::string interface = p.rank_interface.empty() && !several ? "lo" : p.rank_interface;
  if (!interface.empty()) {
    all["OMPI_MCA_oob_tcp_if_include"] = interface;
    all["OMPI_MCA_btl_tcp_if_include"] = interface;
    all["NCCL_SOCKET_IFNAME"] = "=" + interface;  // "=": exactly these names, not what begins like them
  }
  // Other transports (UCX, verbs) choose interfaces by themselves; who wants one says so in the environment.
  if (!is_set("OMPI_MCA_pml")) all["OMPI_MCA_pml"] = "ob1";
  if (!is_set("OMPI_MCA_btl")) all["OMPI_MCA_btl"] = several ? "self,vader,tcp" : "self,vader";
  if (!p.launch_agent.empty()) {
    all["OMPI_MCA_plm"] = "rsh";  // also inside an allocation that has a launcher of its own
    all["OMPI_MCA_plm_rsh_agent"] = p.launch_agent;
  } else if (several && !is_set("OMPI_MCA_plm_rsh_agent")) {
    all["OMPI_MCA_plm_rsh_agent"] = "ssh -o BatchMode=yes";  // a question for a password would wait for ever
  }
  // mpirun's own socket takes every address whatever it is told; so at least not of both families.
  if (!several) all["OMPI_MCA_oob_tcp_disable_ipv6_family"] = "1";
  // Of one node the ranks say what is to be said; why another node cannot be reached only mpirun knows.
  if (!several) all["OMPI_MCA_orte_execute_quiet"] = "1";
  if (ranks > 1 && !several && !scratch.empty()) {
    // What mpirun leaves behind when it is killed; segments of shared memory must not lie on a disk.
    all["OMPI_MCA_orte_tmpdir_base"] = scratch;
    if (scratch.starts_with("/dev/shm/")) all["OMPI_MCA_btl_vader_backing_directory"] = scratch;
  }
  return all;
}

}  // namespace

bool several_nodes(const RankPlacement& p) {
  if (!p.hosts.empty()) return parse_hosts(p.hosts).size() > 1;
  if (!p.hostfile.empty() || is_set("OMPI_MCA_orte_default_hostfile")) return true;
  const char* slurm = std::getenv("SLURM_JOB_NUM_NODES");
  return slurm != nullptr && std::atoi(slurm) > 1;
}

void check_placement(const RankPlacement& p, int ranks) {
  if (!p.hosts.empty() && !p.hostfile.empty()) {
    throw_invalid("--hosts and --hostfile both say where ranks run: give one of them");
  }
  std::string first;
  if (!p.hosts.empty()) {
    int sum = 0;
    const std::vector<Node> nodes = parse_hosts(p.hosts);
    for (const Node& node : nodes) sum += node.ranks;
    if (sum != ranks) {
      throw_invalid("--hosts {}: {} ranks in all, but --tensor-parallel-size is {}", p.hosts, sum, ranks);
    }
    first = nodes.front().name;
  } else if (!p.hostfile.empty()) {
    first = first_of_hostfile(p.hostfile);
  }
  const Interfaces here = interfaces_here();
  if (!first.empty() && !is_this_node(first, here)) {
    throw_invalid("{} {}: the first node, {}, is not this one, where rank 0 has to run",
                  p.hosts.empty() ? "--hostfile" : "--hosts", p.hosts.empty() ? p.hostfile : p.hosts, first);
  }
  if (p.rank_interface.empty()) {
    if (ranks > 1 && several_nodes(p)) {
      throw_invalid("ranks on several nodes need --rank-interface NAME: the network between the nodes "
                    "(ip -brief address lists them)");
    }
    return;
  }
  for (const std::string& name : split(p.rank_interface, ',')) {
    if (here.names.contains(name)) continue;
    std::string known;
    for (const std::string& n : here.names) known += (known.empty() ? "" : ", ") + n;
    throw_invalid("--rank-interface {}: there is no interface \"{}\" here; there are {}", p.rank_interface,
                  name, known);
  }
}

RankWorld make_rank_world(const RankPlacement& p, int ranks, std::vector<std::string> command,
                          const std::string& scratch) {
  const Settings ours = settings(p, ranks, scratch);
  RankWorld world;
  std::set<std::string> for_other_nodes;
  const bool several = ranks > 1 && several_nodes(p);
  const auto note = [&](const std::string& name) {
    for (const char* begin : kForOtherNodes) {
      if (name.starts_with(begin)) for_other_nodes.insert(name);
    }
  };
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    const bool left_out = std::any_of(std::begin(kNotForRanks), std::end(kNotForRanks),
                                      [&](const char* other) { return name == other; });
    if (left_out || ours.contains(name)) continue;
    world.environment.push_back(text);
    note(name);
  }
  for (const auto& [name, value] : ours) {
    world.environment.push_back(name + "=" + value);
    note(name);
  }
  if (ranks == 1) {
    world.command = std::move(command);
    return world;
  }
  world.command = {"mpirun", "-n", std::to_string(ranks), "--map-by", "slot"};
  if (!several) world.command.insert(world.command.begin() + 1, "--quiet");
  if (!p.hosts.empty()) world.command.insert(world.command.end(), {"--host", p.hosts});
  if (!p.hostfile.empty()) world.command.insert(world.command.end(), {"--hostfile", p.hostfile});
  if (several) {
    for (const std::string& name : for_other_nodes) {
      world.command.insert(world.command.end(), {"-x", name});
    }
  }
  world.command.insert(world.command.end(), command.begin(), command.end());
  return world;
}

}  // namespace shoal
