// World size 1: no MPI, no NCCL, no second process. Works on any device.
#pragma once

#include "kernels/base/device.h"
#include "parallel/collectives.h"
#include "parallel/process_group.h"

namespace shoal {

class SelfProcessGroup final : public ProcessGroup {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void broadcast(std::vector<std::byte>& message) override;
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> message) override;
  int64_t min(int64_t value) override { return value; }
  void barrier() override {}
  // The only rank ends by unwinding to its caller: throws DeviceFault(reason).
  [[noreturn]] void abort(const std::string& reason) override;
};

// all_reduce_sum does nothing; the others copy (through host memory, as Device knows no other copy)
// unless output and input are the same memory. bytes_sent() stays 0.
class SelfCollectives final : public Collectives {
 public:
  explicit SelfCollectives(Device& device) : device_(device) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce_sum(const Tensor& x) override {}
  void all_gather_rows(const Tensor& local, std::span<const int64_t> rows,
                       const Tensor& out) override;
  void reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                           const Tensor& out) override;
  void all_to_all_rows(const Tensor& send, std::span<const int64_t> send_rows, const Tensor& recv,
                       std::span<const int64_t> recv_rows) override;
  void all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) override;
  void gather_rows_to_root(const Tensor& local, std::span<const int64_t> elements,
                           const Tensor& out) override;

 private:
  void copy(const Tensor& from, const Tensor& to);

  Device& device_;
};

}  // namespace shoal
