// Part of the emulated CUDA device; see README.md. NCCL's groups and collectives, with the rules
// that its documentation states.
#include <fmt/format.h>
#include <nccl.h>

#include <cstring>

#include "tests/emulated_cuda/nccl_reduce.h"
#include "tests/emulated_cuda/nccl_state.h"
#include "tests/emulated_cuda/stream_work.h"

namespace shoal::emulated {
namespace {

enum Verb : uint32_t { kSend = 1, kAllReduce, kReduce, kBroadcast, kAllGather, kReduceScatter };

// ---- Groups ------------------------------------------------------------------------------------

struct Part {  // of a group: the calls on one communicator
  std::shared_ptr<ncclComm> comm;
  cudaStream_t stream = nullptr;
  NcclProgram program;
  // Sends to and receives from itself, matched in order.
  std::vector<NcclTransfer> own_sends, own_recvs;
};

struct Group {
  int depth = 0;
  ncclResult_t failure = ncclSuccess;
  std::vector<Part> parts;
};
thread_local Group group;

ncclResult_t end_group() {
  if (group.depth == 0) return nccl_fail(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0) return ncclSuccess;
  std::vector<Part> parts = std::move(group.parts);
  const ncclResult_t failure = group.failure;
  group = {};
  if (failure != ncclSuccess) return failure;
  ncclResult_t result = ncclSuccess;
  for (Part& part : parts) {
    if (part.own_sends.size() != part.own_recvs.size()) {
      return nccl_fail(ncclInvalidUsage, "a send to oneself without a matching receive");
    }
    for (size_t i = 0; i < part.own_sends.size(); ++i) {
      const NcclTransfer from = part.own_sends[i], to = part.own_recvs[i];
      if (from.message != to.message) {
        return nccl_fail(ncclInvalidUsage, "a send to oneself and its receive differ");
      }
      part.program.local.push_back(
          [from, to] { std::memmove(to.data, from.data, to.message.bytes); });
    }
    auto program = std::make_shared<NcclProgram>(std::move(part.program));
    if (part.comm->blocking) {
      const ncclResult_t launched = nccl_launch(part.comm, part.stream, std::move(program));
      if (launched != ncclSuccess) return launched;
    } else {
      const std::lock_guard lock(part.comm->mutex);
      part.comm->pending = std::move(program);
      part.comm->pending_stream = part.stream;
      part.comm->state = result = ncclInProgress;
    }
  }
  return result;
}

// One call: checked, and added to the group (an own one if there is none).
ncclResult_t call(ncclComm_t handle, cudaStream_t stream,
                  const std::function<ncclResult_t(Part&)>& add) {
  const auto in_group = [&]() -> ncclResult_t {
    const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
    if (comm == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
    if (const ncclResult_t ready = nccl_ready(comm); ready != ncclSuccess) return ready;
    if (device_of(stream) != comm->device) {
      return nccl_fail(ncclUnhandledCudaError, "the stream is not of the communicator's device");
    }
    Part* part = nullptr;
    for (Part& other : group.parts) {
      if (other.comm == comm) part = &other;
    }
    if (part == nullptr) {
      part = &group.parts.emplace_back();
      part->comm = comm;
      part->stream = stream;
    }
    if (part->stream != stream) {
      return nccl_fail(ncclInvalidUsage,
                       "the stand-in takes one stream per communicator and group");
    }
    return add(*part);
  };
  ++group.depth;
  const ncclResult_t result = in_group();
  if (result != ncclSuccess && group.failure == ncclSuccess) group.failure = result;
  const ncclResult_t ended = end_group();
  return result != ncclSuccess ? result : ended;
}

// ---- Arguments ---------------------------------------------------------------------------------

ncclResult_t check_buffer(const void* data, size_t bytes, const char* what) {
  if (bytes == 0 || is_device_memory(data, bytes)) return ncclSuccess;
  return nccl_fail(ncclInvalidArgument,
                   fmt::format("{}: {} bytes at {} are not device memory", what, bytes, data));
}

// Buffers may be the same where the documentation says so (`in_place`), and overlap in no other
// way.
ncclResult_t check_overlap(const void* send, size_t send_bytes, const void* recv, size_t recv_bytes,
                           bool in_place) {
  const auto* s = static_cast<const std::byte*>(send);
  const auto* r = static_cast<const std::byte*>(recv);
  if (in_place || s + send_bytes <= r || r + recv_bytes <= s) return ncclSuccess;
  return nccl_fail(ncclInvalidArgument, "send and receive buffers overlap and are not in place");
}

struct Sizes {
  size_t element, bytes;
};

ncclResult_t check_type(size_t count, ncclDataType_t type, Sizes& sizes) {
  sizes.element = nccl_type_size(type);
  if (sizes.element == 0)
    return nccl_fail(ncclInvalidArgument, fmt::format("data type {}", int{type}));
  if (count > (size_t{1} << 40))
    return nccl_fail(ncclInvalidArgument, fmt::format("count {}", count));
  sizes.bytes = count * sizes.element;
  return ncclSuccess;
}

std::byte* bytes_of(const void* p) {
  return const_cast<std::byte*>(static_cast<const std::byte*>(p));
}

// Adds to `program`: every other rank's `bytes` come into memory of its own; returns the parts in
// rank order, this rank's own at `own`.
std::vector<const std::byte*> receive_parts(Part& part, const NcclMessage& message,
                                            const std::byte* own) {
  const NcclWorld& world = *part.comm->world;
  auto memory = std::make_shared<std::vector<std::byte>>(message.bytes * world.size());
  part.program.scratch.push_back(memory);
  std::vector<const std::byte*> parts;
  for (int r = 0; r < world.size(); ++r) {
    std::byte* to = memory->data() + r * message.bytes;
    parts.push_back(r == world.rank() ? own : to);
    if (r != world.rank()) part.program.recvs.push_back({r, message, to});
  }
  return parts;
}

void send_to_others(Part& part, const NcclMessage& message, const std::byte* data) {
  for (int r = 0; r < part.comm->world->size(); ++r) {
    if (r != part.comm->world->rank()) part.program.sends.push_back({r, message, bytes_of(data)});
  }
}

ncclResult_t check_root(const Part& part, int root) {
  if (0 <= root && root < part.comm->world->size()) return ncclSuccess;
  return nccl_fail(ncclInvalidArgument,
                   fmt::format("root or peer {} of {}", root, part.comm->world->size()));
}

ncclResult_t check_op(ncclDataType_t type, ncclRedOp_t op) {
  if (nccl_reducible(type, op)) return ncclSuccess;
  return nccl_fail(ncclInvalidArgument, fmt::format("reduction {} of type {}", int{op}, int{type}));
}

}  // namespace

bool in_nccl_group() { return group.depth > 0; }

}  // namespace shoal::emulated

using namespace shoal::emulated;  // NOLINT: the calls below are the library's, with its names

extern "C" {

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() { return end_group(); }

ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    SHOAL_NCCL_TRY(check_op(type, op));
    SHOAL_NCCL_TRY(check_buffer(send, sizes.bytes, "send buffer"));
    SHOAL_NCCL_TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    SHOAL_NCCL_TRY(check_overlap(send, sizes.bytes, recv, sizes.bytes, send == recv));
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kAllReduce + 16u * op, static_cast<uint32_t>(type), sizes.bytes};
    send_to_others(part, message, bytes_of(send));
    const auto parts = receive_parts(part, message, bytes_of(send));
    part.program.local.push_back([=] { nccl_reduce(parts, count, type, op, bytes_of(recv)); });
    return ncclSuccess;
  });
}

ncclResult_t ncclReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_root(part, root));
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    SHOAL_NCCL_TRY(check_op(type, op));
    SHOAL_NCCL_TRY(check_buffer(send, sizes.bytes, "send buffer"));
    const bool is_root = part.comm->world->rank() == root;
    if (is_root) {
      SHOAL_NCCL_TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
      SHOAL_NCCL_TRY(check_overlap(send, sizes.bytes, recv, sizes.bytes, send == recv));
    }
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kReduce + 16u * op, static_cast<uint32_t>(type), sizes.bytes};
    if (!is_root) {
      part.program.sends.push_back({root, message, bytes_of(send)});
      return ncclSuccess;
    }
    const auto parts = receive_parts(part, message, bytes_of(send));
    part.program.local.push_back([=] { nccl_reduce(parts, count, type, op, bytes_of(recv)); });
    return ncclSuccess;
  });
}

ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_root(part, root));
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    SHOAL_NCCL_TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    const bool is_root = part.comm->world->rank() == root;
    if (is_root) {
      SHOAL_NCCL_TRY(check_buffer(send, sizes.bytes, "send buffer"));
      SHOAL_NCCL_TRY(check_overlap(send, sizes.bytes, recv, sizes.bytes, send == recv));
    }
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kBroadcast, static_cast<uint32_t>(type), sizes.bytes};
    if (!is_root) {
      part.program.recvs.push_back({root, message, bytes_of(recv)});
      return ncclSuccess;
    }
    send_to_others(part, message, bytes_of(send));
    part.program.local.push_back([=] { std::memmove(recv, send, sizes.bytes); });
    return ncclSuccess;
  });
}

ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    const int n = part.comm->world->size(), me = part.comm->world->rank();
    std::byte* own = bytes_of(recv) + me * sizes.bytes;
    SHOAL_NCCL_TRY(check_buffer(send, sizes.bytes, "send buffer"));
    SHOAL_NCCL_TRY(check_buffer(recv, n * sizes.bytes, "receive buffer"));
    SHOAL_NCCL_TRY(check_overlap(send, sizes.bytes, recv, n * sizes.bytes, send == own));
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kAllGather, static_cast<uint32_t>(type), sizes.bytes};
    send_to_others(part, message, bytes_of(send));
    for (int r = 0; r < n; ++r) {
      if (r != me) part.program.recvs.push_back({r, message, bytes_of(recv) + r * sizes.bytes});
    }
    part.program.local.push_back([=] { std::memmove(own, send, sizes.bytes); });
    return ncclSuccess;
  });
}

ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    SHOAL_NCCL_TRY(check_op(type, op));
    const int n = part.comm->world->size(), me = part.comm->world->rank();
    const std::byte* own = bytes_of(send) + me * sizes.bytes;
    SHOAL_NCCL_TRY(check_buffer(send, n * sizes.bytes, "send buffer"));
    SHOAL_NCCL_TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    SHOAL_NCCL_TRY(check_overlap(send, n * sizes.bytes, recv, sizes.bytes, recv == own));
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kReduceScatter + 16u * op, static_cast<uint32_t>(type), sizes.bytes};
    for (int r = 0; r < n; ++r) {
      if (r != me) part.program.sends.push_back({r, message, bytes_of(send) + r * sizes.bytes});
    }
    const auto parts = receive_parts(part, message, own);
    part.program.local.push_back([=] { nccl_reduce(parts, count, type, op, bytes_of(recv)); });
    return ncclSuccess;
  });
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_root(part, peer));
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    SHOAL_NCCL_TRY(check_buffer(send, sizes.bytes, "send buffer"));
    const NcclTransfer transfer{
        peer, {kSend, static_cast<uint32_t>(type), sizes.bytes}, bytes_of(send)};
    const bool own = peer == part.comm->world->rank();
    (own ? part.own_sends : part.program.sends).push_back(transfer);
    return ncclSuccess;
  });
}

ncclResult_t ncclRecv(void* recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    SHOAL_NCCL_TRY(check_root(part, peer));
    SHOAL_NCCL_TRY(check_type(count, type, sizes));
    SHOAL_NCCL_TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    const NcclTransfer transfer{
        peer, {kSend, static_cast<uint32_t>(type), sizes.bytes}, bytes_of(recv)};
    const bool own = peer == part.comm->world->rank();
    (own ? part.own_recvs : part.program.recvs).push_back(transfer);
    return ncclSuccess;
  });
}

}  // extern "C"
