// Where the ranks run: from flags (and the allocation that this process finds itself in) to the command and
// the environment that start them. mpirun of Open MPI starts several; how it reaches other nodes is --hosts,
// --hostfile and --launch-agent, or the allocation of Slurm or of Kubernetes' MPI operator.
//
// Rank 0 is always on this node, because it answers the front end over a unix socket.
#pragma once

#include <string>
#include <vector>

namespace shoal {

// Of the front end; no rank sees them.
struct RankPlacement {
  std::string hosts;           // --hosts NODE:RANKS,...; empty: this node, or the allocation's
  std::string hostfile;        // --hostfile FILE of Open MPI: "NODE slots=RANKS" a line
  std::string launch_agent;    // --launch-agent COMMAND, run as COMMAND NODE WORDS...; empty: ssh
  std::string rank_interface;  // --rank-interface NAME[,NAME]; needed when there are several nodes
  // --launch-timeout: seconds until all ranks have found each other; before they load. mpirun waits for ever for
  // a node that does not answer.
  double launch_timeout = 120;
};

// What RankProcesses starts.
struct RankWorld {
  std::vector<std::string> command;      // argv
  std::vector<std::string> environment;  // all of it, NAME=VALUE
};

// Whether ranks may run on other nodes: asked for, or in an allocation of several.
bool several_nodes(const RankPlacement& placement);

// Throws InvalidInput when the placement cannot be: ranks that do not add up, a first node that is not
// this one, an interface that is not here or is not named though there are several nodes.
void check_placement(const RankPlacement& placement, int ranks);

// `command` as `ranks` processes. What MPI keeps in files goes into `scratch` (a folder of this user only, for
// the life of the ranks), except on other nodes; "": the system's places.
RankWorld make_rank_world(const RankPlacement& placement, int ranks, std::vector<std::string> command,
                          const std::string& scratch);

}  // namespace shoal
