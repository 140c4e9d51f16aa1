// `shoal inspect`: what a checkpoint is and what each rank would hold, from its headers, without
// loading it.
#pragma once

#include <string>

namespace shoal {

struct InspectOptions {
  std::string model;             // --model: folder or org/name
  std::string revision = "main";  // --revision
  int tensor_parallel_size = 1;  // --tensor-parallel-size
  bool tensors = false;          // --tensors: also every tensor
  bool json = false;             // --json: for programs
};

// What run_inspect prints. Throws InvalidInput when the checkpoint would be refused at load, as far
// as headers show.
std::string inspect_report(const InspectOptions& options);

// Prints the report to standard output. Returns the exit code.
int run_inspect(const InspectOptions& options);

}  // namespace shoal
