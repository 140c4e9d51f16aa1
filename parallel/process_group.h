// ProcessGroup: the control plane of a group of ranks. Small plain messages, never tensors.
// All ranks call the same methods in the same order. A lost peer throws DeviceFault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace shoal {

// Longest broadcast or gathered message: far above any StepPlan, far below what MPI counts in an int.
constexpr size_t kMaxControlMessageBytes = size_t{64} << 20;

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Rank 0's bytes reach all. Ranks that wait for it *sleep* (polling with a backoff that ends in
  // milliseconds), so that an idle server costs nothing; messages are limited to
  // kMaxControlMessageBytes.
  virtual void broadcast(std::vector<std::byte>& message) = 0;
  // Rank 0 gets everybody's bytes, in rank order (others: empty).
  virtual std::vector<std::vector<std::byte>> gather(std::span<const std::byte> message) = 0;
  virtual int64_t min(int64_t value) = 0;  // over all ranks, on all ranks
  virtual void barrier() = 0;
  // Ends every rank of the group, also those that are inside a collective. Does not return.
  [[noreturn]] virtual void abort(const std::string& reason) = 0;
};

}  // namespace shoal
