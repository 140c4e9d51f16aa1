// Data plane of CPU ranks over MPI. Device memory has to be host memory.
//
// Every verb is one or two rounds of point-to-point messages, so that it is plain who sends what
// and in which order sums are added. With N ranks and x of B bytes, a rank sends
//   all_reduce_sum       (N-1) B in one round up to kOneShotBytes, or for N = 2; else in two rounds
//                        B - b + (N-1) b, b = its own slice (about 2 B (N-1) / N)
//   all_gather_rows      (N-1) times its rows
//   reduce_scatter_rows  all rows but its own
//   all_to_all_rows      the rows for others
//   all_to_all_counts    8 (N-1)
//   gather_rows_to_root  its elements, rank 0 nothing
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <vector>

#include "kernels/base/device.h"
#include "parallel/collectives.h"
#include "parallel/mpi/mpi_group.h"

namespace shoal {

class MpiCollectives final : public Collectives {
 public:
  // A second round costs some 10 to 50 us where ranks share cores, in which shared memory moves 50
  // KB or more; one round moves (N-1)(1 - 2/N) B more than two: 24 KB at four ranks and this limit.
  static constexpr int64_t kOneShotBytes = 16 << 10;

  // Collective. A verb throws DeviceFault when a peer keeps it waiting for longer than
  // `time_limit`.
  explicit MpiCollectives(Device& device,
                          std::chrono::milliseconds time_limit = std::chrono::minutes(5));
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  void all_reduce_sum(const Tensor& x) override;
  void all_gather_rows(const Tensor& local, std::span<const int64_t> rows,
                       const Tensor& out) override;
  void reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                           const Tensor& out) override;
  void all_to_all_rows(const Tensor& send, std::span<const int64_t> send_rows, const Tensor& recv,
                       std::span<const int64_t> recv_rows) override;
  void all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) override;
  void gather_rows_to_root(const Tensor& local, std::span<const int64_t> elements,
                           const Tensor& out) override;
  void reserve(size_t bytes) override;

 private:
  struct Piece {
    std::byte* data = nullptr;
    int64_t bytes = 0;
  };
  using Pieces = std::vector<Piece>;  // [ranks]

  // Sends send[r] to rank r and receives recv[r] from it; this rank's own piece is copied.
  void exchange(const Pieces& send, const Pieces& recv);
  void wait_all(std::vector<MPI_Request>& requests);
  // Consecutive pieces of `data`, piece r of sizes[r] * unit_bytes bytes.
  static Pieces pieces_of(const Tensor& data, std::span<const int64_t> sizes, int64_t unit_bytes);
  // Room for one piece of each other rank; this rank's own piece is `own`.
  Pieces scratch_pieces(const Piece& own);

  Device& device_;
  std::chrono::milliseconds time_limit_;
  MpiCommunicator comm_;
  std::vector<std::byte> scratch_;
};

}  // namespace shoal
