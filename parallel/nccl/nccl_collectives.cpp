#include "parallel/nccl/nccl_collectives.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "parallel/shard.h"

namespace shoal {
namespace {

ncclDataType_t summable(DType dtype) {
  switch (dtype) {
    case DType::kF32: return ncclFloat32;
    case DType::kBF16: return ncclBfloat16;
    case DType::kI32: return ncclInt32;
    default: break;
  }
  SHOAL_CHECK(false, "a sum of {}", dtype_name(dtype));
  return ncclNumTypes;
}

int64_t row_bytes(const Tensor& x) { return x.num_bytes() / std::max<int64_t>(x.dim(0), 1); }

int64_t sum_of(std::span<const int64_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

bool all_equal(std::span<const int64_t> sizes) {
  return std::adjacent_find(sizes.begin(), sizes.end(), std::not_equal_to<>()) == sizes.end();
}

// Where each rank's piece of `data` begins; checks that the pieces fill it.
std::vector<std::byte*> pieces_of(const Tensor& data, std::span<const int64_t> sizes,
                                  int64_t unit_bytes) {
  SHOAL_CHECK(data.contiguous(), "{} with gaps", data.shape_string());
  std::vector<std::byte*> pieces;
  auto* next = static_cast<std::byte*>(data.data);
  for (int64_t size : sizes) {
    SHOAL_CHECK(size >= 0, "{} rows", size);
    pieces.push_back(next);
    next += size * unit_bytes;
  }
  SHOAL_CHECK(next == static_cast<std::byte*>(data.data) + data.num_bytes(),
              "pieces of {} bytes in all for {}", next - static_cast<std::byte*>(data.data),
              data.shape_string());
  return pieces;
}

void copy_on_stream(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0 || to == from) return;
  SHOAL_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

// Inside a group: bytes to and from one peer. Both sides leave out what is empty.
void send_bytes(const void* data, int64_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
  if (bytes > 0) check_nccl(ncclSend(data, bytes, ncclUint8, peer, comm, stream), "ncclSend");
}
void recv_bytes(void* data, int64_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
  if (bytes > 0) check_nccl(ncclRecv(data, bytes, ncclUint8, peer, comm, stream), "ncclRecv");
}

}  // namespace

class NcclCollectives::Order {
 public:
  explicit Order(NcclCollectives& comm) : comm_(comm) {
    if (comm_.device_.capturing() || comm_.last_stream_ == nullptr) return;
    if (comm_.last_stream_ == comm_.stream()) return;
    SHOAL_CUDA_CHECK(cudaStreamWaitEvent(comm_.stream(), comm_.last_ended_.get(), 0));
  }
  ~Order() {
    if (comm_.device_.capturing()) return;
    // A failure here is the device's, and the next call reports it.
    if (cudaEventRecord(comm_.last_ended_.get(), comm_.stream()) == cudaSuccess) {
      comm_.last_stream_ = comm_.stream();
    }
  }
  Order(const Order&) = delete;

 private:
  NcclCollectives& comm_;
};

NcclCollectives::NcclCollectives(CudaDevice& device, ProcessGroup& control, NcclOptions options)
    : exceptions_at_start_(std::uncaught_exceptions()),
      device_(device),
      comm_(device, control, options.time_limit),
      watchdog_(device, comm_.rank(), comm_.size(), options.time_limit,
                {.async_error =
                     [this] {
                       const PeerAllReduce* peer = peer_to_abort_.load();
                       return peer != nullptr && peer->expired() ? ncclRemoteError
                                                                 : comm_.async_error();
                     },
                 .abort =
                     [this] {
                       if (PeerAllReduce* peer = peer_to_abort_.load()) peer->abort();
                       comm_.abort();
                     },
                 .last_resort = [&control](const std::string& why) { control.abort(why); }}),
      counts_(device.allocate((1 + size()) * size() * sizeof(int64_t))) {
  cudaEvent_t event = nullptr;
  SHOAL_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  last_ended_.reset(event);
  if (options.peer_memory) {
    // The watchdog knows more than the kernels' own clock and should come first.
    peer_ = PeerAllReduce::make(device, control, options.peer_buffer_bytes,
                                options.time_limit + std::chrono::seconds(5));
    peer_to_abort_ = peer_.get();
    if (peer_ && options.measure) {
      peer_->measure(control, [this](const Tensor& x) { all_reduce_by_nccl(x); });
    }
  }
  device_.add_observer(this);
}

NcclCollectives::~NcclCollectives() {
  device_.remove_observer(this);
  if (std::uncaught_exceptions() != exceptions_at_start_) comm_.abort();  // others may never come
  if (!peer_) return;
  // Nobody may free memory that another rank still has open: one more sum over all, and everybody
  // has closed it.
  try {
    device_.synchronize();
    peer_->disconnect();
    device_.zero(counts_.data(), counts_.bytes());
    all_reduce_by_nccl(Tensor(counts_.data(), DType::kI32, {1}));
    device_.synchronize();
    watchdog_.check();
  } catch (const DeviceFault&) {
    static_cast<void>(
        peer_.release());  // left to the end of the process, which a fault brings anyway
  }
}

void NcclCollectives::run(const char* name, int64_t bytes,
                          const std::function<void(ncclComm_t)>& calls) {
  const Order order(*this);
  Watchdog::Scope scope(watchdog_, name, bytes, position());
  try {
    comm_.issue(calls);
  } catch (const DeviceFault& fault) {
    watchdog_.fail(fmt::format("{}: {}", scope.description(), fault.what()));
  }
}

void NcclCollectives::count_all_reduce(const Tensor& x, bool one_round) {
  const int64_t bytes = x.num_bytes();
  if (one_round) {
    bytes_sent_ += (size() - 1) * bytes;
    return;
  }
  const int64_t own =
      split_evenly(x.num_elements(), size(), 16)[rank()].size() * dtype_size(x.dtype);
  bytes_sent_ += bytes - own + (size() - 1) * own;
}

void NcclCollectives::all_reduce_by_nccl(const Tensor& x) {
  run("all_reduce_sum", x.num_bytes(), [&](ncclComm_t comm) {
    check_nccl(
        ncclAllReduce(x.data, x.data, x.num_elements(), summable(x.dtype), ncclSum, comm, stream()),
        "ncclAllReduce");
  });
}

void NcclCollectives::all_reduce_sum(const Tensor& x) {
  const Account account(*this, Traffic::kAllReduce);
  SHOAL_CHECK(x.contiguous(), "{} with gaps", x.shape_string());
  summable(x.dtype);
  if (size() == 1 || x.num_elements() == 0) return;
  using Way = PeerAllReduce::Way;
  const Way way = peer_ && peer_->takes(x) ? peer_->way_for(x.num_bytes()) : Way::kNccl;
  if (way == Way::kNccl) {
    all_reduce_by_nccl(x);
  } else {
    const Order order(*this);
    Watchdog::Scope scope(watchdog_, "all_reduce_sum", x.num_bytes(), position(),
                          Watchdog::Mark::kCollective);
    peer_->number_next(watchdog_.progress_word(), scope.number_in_graph());
    way == Way::kOneShot ? peer_->one_shot(x) : peer_->two_shot(x);
  }
  count_all_reduce(x, way == Way::kOneShot);
}

bool NcclCollectives::all_reduce_add_rms_norm(const Tensor& x, const Tensor& residual,
                                              const Tensor& weight, float eps, const Tensor& out) {
  const Account account(*this, Traffic::kAllReduce);
  if (!peer_ || !peer_->takes_rows(x) ||
      peer_->way_for(x.num_bytes()) != PeerAllReduce::Way::kOneShot) {
    return false;
  }
  if (x.num_elements() == 0) return true;
  const Order order(*this);
  Watchdog::Scope scope(watchdog_, "all_reduce_add_rms_norm", x.num_bytes(), position(),
                        Watchdog::Mark::kCollective);
  peer_->number_next(watchdog_.progress_word(), scope.number_in_graph());
  peer_->add_rms_norm(x, residual, weight, eps, out);
  count_all_reduce(x, true);
  return true;
}

void NcclCollectives::all_gather_rows(const Tensor& local, std::span<const int64_t> rows,
                                      const Tensor& out) {
  const Account account(*this, Traffic::kAllGather);
  SHOAL_CHECK(std::ssize(rows) == size() && local.contiguous() && local.dtype == out.dtype &&
                  local.dim(0) == rows[rank()],
              "{} of {}", local.shape_string(), out.shape_string());
  const int64_t unit = row_bytes(out);
  const std::vector<std::byte*> pieces = pieces_of(out, rows, unit);
  SHOAL_CHECK(local.num_bytes() == rows[rank()] * unit, "{} of {}", local.shape_string(),
              out.shape_string());
  if (out.num_bytes() == 0) return;
  run("all_gather_rows", out.num_bytes(), [&](ncclComm_t comm) {
    if (all_equal(rows)) {
      check_nccl(ncclAllGather(local.data, out.data, local.num_bytes(), ncclUint8, comm, stream()),
                 "ncclAllGather");
      return;
    }
    for (int r = 0; r < size(); ++r) {
      if (rows[r] == 0) continue;
      check_nccl(ncclBroadcast(r == rank() ? local.data : pieces[r], pieces[r], rows[r] * unit,
                               ncclUint8, r, comm, stream()),
                 "ncclBroadcast");
    }
  });
  bytes_sent_ += (size() - 1) * local.num_bytes();
}

void NcclCollectives::reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                                          const Tensor& out) {
  const Account account(*this, Traffic::kReduceScatter);
  SHOAL_CHECK(std::ssize(rows) == size() && x.dtype == out.dtype && out.contiguous() &&
                  out.dim(0) == rows[rank()],
              "{} to {}", x.shape_string(), out.shape_string());
  const ncclDataType_t type = summable(x.dtype);
  const int64_t unit = row_bytes(x);
  const std::vector<std::byte*> pieces = pieces_of(x, rows, unit);
  SHOAL_CHECK(out.num_bytes() == rows[rank()] * unit, "{} to {}", x.shape_string(),
              out.shape_string());
  if (x.num_bytes() == 0) return;
  const int64_t row_elements = unit / dtype_size(x.dtype);
  run("reduce_scatter_rows", x.num_bytes(), [&](ncclComm_t comm) {
    if (all_equal(rows)) {
      check_nccl(
          ncclReduceScatter(x.data, out.data, out.num_elements(), type, ncclSum, comm, stream()),
          "ncclReduceScatter");
      return;
    }
    for (int r = 0; r < size(); ++r) {
      if (rows[r] == 0) continue;
      check_nccl(
          ncclReduce(pieces[r], out.data, rows[r] * row_elements, type, ncclSum, r, comm, stream()),
          "ncclReduce");
    }
  });
  bytes_sent_ += x.num_bytes() - out.num_bytes();
}

void NcclCollectives::all_to_all_rows(const Tensor& send, std::span<const int64_t> send_rows,
                                      const Tensor& recv, std::span<const int64_t> recv_rows) {
  const Account account(*this, Traffic::kAllToAll);
  SHOAL_CHECK(std::ssize(send_rows) == size() && std::ssize(recv_rows) == size() &&
                  send.dtype == recv.dtype && send.dim(1) == recv.dim(1),
              "{} and {}", send.shape_string(), recv.shape_string());
  const int64_t unit = send.dim(1) * dtype_size(send.dtype);
  const std::vector<std::byte*> from = pieces_of(send, send_rows, unit);
  const std::vector<std::byte*> to = pieces_of(recv, recv_rows, unit);
  const int me = rank();
  SHOAL_CHECK(send_rows[me] == recv_rows[me], "{} rows to itself, {} expected", send_rows[me],
              recv_rows[me]);
  copy_on_stream(to[me], from[me], send_rows[me] * unit, stream());
  const int64_t sent = (sum_of(send_rows) - send_rows[me]) * unit;
  const int64_t received = (sum_of(recv_rows) - recv_rows[me]) * unit;
  if (sent == 0 && received == 0) return;
  run("all_to_all_rows", sent + received, [&](ncclComm_t comm) {
    // Starting with the next rank, so that not everybody sends to rank 0 first.
    for (int i = 1; i < size(); ++i) {
      const int next = (me + i) % size(), previous = (me - i + size()) % size();
      send_bytes(from[next], send_rows[next] * unit, next, comm, stream());
      recv_bytes(to[previous], recv_rows[previous] * unit, previous, comm, stream());
    }
  });
  bytes_sent_ += sent;
}

void NcclCollectives::all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) {
  const Account account(*this, Traffic::kAllToAll);
  SHOAL_CHECK(std::ssize(send) == size() && send.size() == recv.size());
  auto* own = static_cast<int64_t*>(counts_.data());
  int64_t* all = own + size();  // [N, N]
  device_.copy_to_device(own, send.data(), send.size_bytes());
  run("all_to_all_counts", 8 * size() * size(), [&](ncclComm_t comm) {
    check_nccl(ncclAllGather(own, all, size(), ncclInt64, comm, stream()), "ncclAllGather");
  });
  std::vector<int64_t> table(size() * size());
  device_.copy_to_host(table.data(), all, table.size() * sizeof(int64_t));
  for (int r = 0; r < size(); ++r) recv[r] = table[r * size() + rank()];
  bytes_sent_ += 8 * (size() - 1);
}

void NcclCollectives::gather_rows_to_root(const Tensor& local, std::span<const int64_t> elements,
                                          const Tensor& out) {
  const Account account(*this, Traffic::kGather);
  SHOAL_CHECK(std::ssize(elements) == size() && local.contiguous() &&
                  local.num_elements() == elements[rank()],
              "{} of {} elements", local.shape_string(), elements[rank()]);
  const int64_t unit = dtype_size(local.dtype);
  std::vector<std::byte*> pieces;
  if (rank() == 0) {
    SHOAL_CHECK(out.dtype == local.dtype, "{} to {}", local.shape_string(), out.shape_string());
    pieces = pieces_of(out, elements, unit);
    copy_on_stream(pieces[0], local.data, local.num_bytes(), stream());
  }
  const int64_t moved = rank() == 0 ? (sum_of(elements) - elements[0]) * unit : local.num_bytes();
  if (moved == 0) return;
  run("gather_rows_to_root", moved, [&](ncclComm_t comm) {
    if (rank() != 0) {
      send_bytes(local.data, local.num_bytes(), 0, comm, stream());
      return;
    }
    for (int r = 1; r < size(); ++r) {
      recv_bytes(pieces[r], elements[r] * unit, r, comm, stream());
    }
  });
  if (rank() != 0) bytes_sent_ += local.num_bytes();
}

}  // namespace shoal
