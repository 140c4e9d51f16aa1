// Control plane over MPI: one process per rank, started by mpirun.
//
// The launcher's environment must let Open MPI run as root (OMPI_ALLOW_RUN_AS_ROOT and
// OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1), share cores (OMPI_MCA_rmaps_base_oversubscribe = 1) and bind
// nothing (OMPI_MCA_hwloc_base_binding_policy = none).
#pragma once

#include <mpi.h>

#include <deque>

#include "parallel/process_group.h"

namespace shoal {

// MPI_Init and MPI_Finalize. At most one per process, before any other object of this folder and
// outliving them; not needed, and not to be constructed, by a world of one rank. Any thread may
// then call MPI, one at a time.
class MpiRuntime {
 public:
  MpiRuntime();
  // Finalises, which waits for the other ranks; while an exception unwinds it does not, as they may
  // never come: the process then ends without, and mpirun ends the others.
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  // The number of ranks that mpirun says it started, without touching MPI; 1 outside mpirun.
  static int launched_ranks();

 private:
  int exceptions_at_start_;
};

// Throws DeviceFault with the operation and MPI's own text unless rc is MPI_SUCCESS.
void check_mpi(int rc, const char* operation);

// An own copy of MPI_COMM_WORLD, whose errors come back as return codes. Making one is collective.
class MpiCommunicator {
 public:
  MpiCommunicator();
  ~MpiCommunicator();
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  MPI_Comm get() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
};

// Whoever waits here polls with a backoff, without limit of time (a rank may load for minutes, or
// be idle for days): see wait_asleep in the source for latency and cost. One thread calls.
class MpiProcessGroup final : public ProcessGroup {
 public:
  MpiProcessGroup();
  ~MpiProcessGroup() override;
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  // Rank 0 hands the bytes to MPI and goes on: it does not wait for ranks that sleep.
  void broadcast(std::vector<std::byte>& message) override;
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> message) override;
  int64_t min(int64_t value) override;
  void barrier() override;
  [[noreturn]] void abort(const std::string& reason) override;

 private:
  // A broadcast that not every rank has received yet: MPI reads the bytes until then.
  struct Outgoing {
    std::vector<std::byte> message;
    std::vector<MPI_Request> requests;
  };

  std::vector<std::byte> receive(int from, int tag);
  void reap_broadcasts(size_t keep);

  int exceptions_at_start_;
  MpiCommunicator comm_;
  std::deque<Outgoing> outgoing_;  // oldest first
};

}  // namespace shoal
