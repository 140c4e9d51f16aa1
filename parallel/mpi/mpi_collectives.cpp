#include "parallel/mpi/mpi_collectives.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "parallel/shard.h"

namespace shoal {
namespace {

// MPI counts in an int.
constexpr int64_t kMessageBytes = int64_t{1} << 30;
constexpr int kTag = 1;

int64_t row_bytes(const Tensor& x) { return x.num_bytes() / std::max<int64_t>(x.dim(0), 1); }

// out = parts[0] + parts[1] + .. in this order. `out` may be one of the parts.
void sum_in_order(const std::vector<const float*>& parts, int64_t count, float* out) {
  constexpr int64_t kBlock = 1024;  // 4 KB: the sum of a block stays in the first-level cache
  float sum[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    std::copy_n(parts[0] + begin, n, sum);
    for (size_t r = 1; r < parts.size(); ++r) {
      const float* part = parts[r] + begin;
      for (int64_t i = 0; i < n; ++i) sum[i] += part[i];
    }
    std::copy_n(sum, n, out + begin);
  }
}

}  // namespace

MpiCollectives::MpiCollectives(Device& device, std::chrono::milliseconds time_limit)
    : device_(device), time_limit_(time_limit) {}

MpiCollectives::Pieces MpiCollectives::pieces_of(const Tensor& data, std::span<const int64_t> sizes,
                                                 int64_t unit_bytes) {
  SHOAL_CHECK(data.contiguous(), "{} with gaps", data.shape_string());
  Pieces pieces;
  auto* next = static_cast<std::byte*>(data.data);
  for (int64_t size : sizes) {
    SHOAL_CHECK(size >= 0, "{} rows", size);
    pieces.push_back({next, size * unit_bytes});
    next += size * unit_bytes;
  }
  SHOAL_CHECK(next == static_cast<std::byte*>(data.data) + data.num_bytes(),
              "pieces of {} bytes in all for {}", next - static_cast<std::byte*>(data.data),
              data.shape_string());
  return pieces;
}

void MpiCollectives::reserve(size_t bytes) {
  if (bytes <= scratch_.size()) return;
  device_.ledger().add(MemoryUse::kCommunication, bytes - scratch_.size());
  scratch_.resize(bytes);
}

MpiCollectives::Pieces MpiCollectives::scratch_pieces(const Piece& own) {
  reserve((size() - 1) * own.bytes);
  Pieces pieces;
  std::byte* next = scratch_.data();
  for (int r = 0; r < size(); ++r) {
    pieces.push_back(r == rank() ? own : Piece{next, own.bytes});
    if (r != rank()) next += own.bytes;
  }
  return pieces;
}

void MpiCollectives::wait_all(std::vector<MPI_Request>& requests) {
  // Peers are in the same step and come soon: yielding rather than sleeping, so that ranks that
  // share a core make way for each other.
  const auto deadline = std::chrono::steady_clock::now() + time_limit_;
  for (int64_t polls = 1;; ++polls) {
    int done = 0;
    check_mpi(
        MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
        "a collective");
    if (done) return;
    std::this_thread::yield();
    if (polls % 1024 == 0 && std::chrono::steady_clock::now() > deadline) {
      throw DeviceFault(fmt::format("rank {} waited {} s in a collective for another rank", rank(),
                                    time_limit_.count() / 1000.0));
    }
  }
}

void MpiCollectives::exchange(const Pieces& send, const Pieces& recv) {
  SHOAL_CHECK(static_cast<int>(send.size()) == size() && static_cast<int>(recv.size()) == size(),
              "{} and {} pieces for {} ranks", send.size(), recv.size(), size());
  device_.synchronize();
  std::vector<MPI_Request> requests;
  // Starting with the next rank, so that not everybody sends to rank 0 first.
  for (int i = 1; i < size(); ++i) {
    const int from = (rank() - i + size()) % size();
    for (int64_t at = 0; at < recv[from].bytes; at += kMessageBytes) {
      const int bytes = static_cast<int>(std::min(kMessageBytes, recv[from].bytes - at));
      check_mpi(MPI_Irecv(recv[from].data + at, bytes, MPI_BYTE, from, kTag, comm_.get(),
                          &requests.emplace_back(MPI_REQUEST_NULL)),
                "MPI_Irecv");
    }
  }
  for (int i = 1; i < size(); ++i) {
    const int to = (rank() + i) % size();
    for (int64_t at = 0; at < send[to].bytes; at += kMessageBytes) {
      const int bytes = static_cast<int>(std::min(kMessageBytes, send[to].bytes - at));
      check_mpi(MPI_Isend(send[to].data + at, bytes, MPI_BYTE, to, kTag, comm_.get(),
                          &requests.emplace_back(MPI_REQUEST_NULL)),
                "MPI_Isend");
      bytes_sent_ += bytes;
    }
  }
  const Piece& from = send[rank()];
  const Piece& to = recv[rank()];
  SHOAL_CHECK(from.bytes == to.bytes, "{} bytes to itself, {} expected", from.bytes, to.bytes);
  if (from.bytes > 0 && from.data != to.data) std::memcpy(to.data, from.data, from.bytes);
  wait_all(requests);
}

void MpiCollectives::all_reduce_sum(const Tensor& x) {
  const Account account(*this, Traffic::kAllReduce, /*timed=*/true);
  SHOAL_CHECK(x.dtype == DType::kF32 && x.contiguous(), "{}", x.shape_string());
  const int64_t count = x.num_elements();
  if (size() == 1 || count == 0) return;
  const auto sum = [](const Pieces& parts, std::byte* out) {
    std::vector<const float*> floats;
    for (const Piece& part : parts) floats.push_back(reinterpret_cast<const float*>(part.data));
    sum_in_order(floats, parts[0].bytes / 4, reinterpret_cast<float*>(out));
  };
  const Piece whole{static_cast<std::byte*>(x.data), x.num_bytes()};
  if (size() == 2 || whole.bytes <= kOneShotBytes) {
    const Pieces parts = scratch_pieces(whole);
    exchange(Pieces(size(), whole), parts);
    sum(parts, whole.data);
    return;
  }
  // Slices of whole cache lines, so that no line is written by two messages.
  const Pieces slices = pieces_of(x, sizes_of(split_evenly(count, size(), 16)), 4);
  const Piece& own = slices[rank()];
  const Pieces parts = scratch_pieces(own);
  exchange(slices, parts);
  sum(parts, own.data);
  exchange(Pieces(size(), own), slices);
}

void MpiCollectives::all_gather_rows(const Tensor& local, std::span<const int64_t> rows,
                                     const Tensor& out) {
  const Account account(*this, Traffic::kAllGather, /*timed=*/true);
  SHOAL_CHECK(local.contiguous() && local.dtype == out.dtype && local.dim(0) == rows[rank()],
              "{} of {}", local.shape_string(), out.shape_string());
  const Piece own{static_cast<std::byte*>(local.data), local.num_bytes()};
  exchange(Pieces(size(), own), pieces_of(out, rows, row_bytes(out)));
}

void MpiCollectives::reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                                         const Tensor& out) {
  const Account account(*this, Traffic::kReduceScatter, /*timed=*/true);
  SHOAL_CHECK(x.dtype == DType::kF32 && out.dtype == DType::kF32 && out.contiguous() &&
                  out.dim(0) == rows[rank()],
              "{} to {}", x.shape_string(), out.shape_string());
  const Pieces slices = pieces_of(x, rows, row_bytes(x));
  const Pieces parts = scratch_pieces(slices[rank()]);
  SHOAL_CHECK(out.num_bytes() == slices[rank()].bytes, "{} to {}", x.shape_string(),
              out.shape_string());
  exchange(slices, parts);
  std::vector<const float*> floats;
  for (const Piece& part : parts) floats.push_back(reinterpret_cast<const float*>(part.data));
  sum_in_order(floats, out.num_elements(), out.as<float>());
}

void MpiCollectives::all_to_all_rows(const Tensor& send, std::span<const int64_t> send_rows,
                                     const Tensor& recv, std::span<const int64_t> recv_rows) {
  const Account account(*this, Traffic::kAllToAll, /*timed=*/true);
  SHOAL_CHECK(send.dtype == recv.dtype && send.dim(1) == recv.dim(1), "{} and {}",
              send.shape_string(), recv.shape_string());
  const int64_t bytes = send.dim(1) * dtype_size(send.dtype);
  exchange(pieces_of(send, send_rows, bytes), pieces_of(recv, recv_rows, bytes));
}

void MpiCollectives::all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) {
  const Account account(*this, Traffic::kAllToAll, /*timed=*/true);
  SHOAL_CHECK(static_cast<int>(send.size()) == size() && send.size() == recv.size());
  const std::vector<int64_t> ones(size(), 1);
  const Tensor from(const_cast<int64_t*>(send.data()), DType::kI64, {size()});
  const Tensor to(recv.data(), DType::kI64, {size()});
  exchange(pieces_of(from, ones, sizeof(int64_t)), pieces_of(to, ones, sizeof(int64_t)));
}

void MpiCollectives::gather_rows_to_root(const Tensor& local, std::span<const int64_t> elements,
                                         const Tensor& out) {
  const Account account(*this, Traffic::kGather, /*timed=*/true);
  SHOAL_CHECK(local.contiguous() && local.num_elements() == elements[rank()], "{} of {} elements",
              local.shape_string(), elements[rank()]);
  Pieces send(size());
  send[0] = {static_cast<std::byte*>(local.data), local.num_bytes()};
  Pieces recv(size());
  if (rank() == 0) recv = pieces_of(out, elements, dtype_size(out.dtype));
  exchange(send, recv);
}

}  // namespace shoal
