// Part of the emulated CUDA device; see README.md. NCCL's calls, between processes or threads, with the
// rules that its documentation states. What a real NCCL leaves open is chosen to hurt:
//  - a group on a non-blocking communicator returns ncclInProgress and reaches the stream only when the
//    caller has asked ncclCommGetAsyncError until it says ncclSuccess;
//  - counts or types that differ between ranks are an asynchronous error, and the collective hangs;
//  - a rank that is gone is not noticed: whoever waits for it waits until ncclCommAbort.
#include <nccl.h>

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "tests/emulated_cuda/nccl_control.h"
#include "tests/emulated_cuda/nccl_reduce.h"
#include "tests/emulated_cuda/nccl_world.h"
#include "tests/emulated_cuda/stream_work.h"

namespace {

using shoal::emulated::NcclFault;
using shoal::emulated::NcclMessage;
using shoal::emulated::NcclTransfer;
using shoal::emulated::NcclWorld;

enum Verb : uint32_t { kSend = 1, kAllReduce, kReduce, kBroadcast, kAllGather, kReduceScatter };

thread_local std::string last_error;

ncclResult_t fail(ncclResult_t result, std::string text) {
  last_error = std::move(text);
  return result;
}

std::atomic<int> reported_version{0};
std::atomic<NcclFault> fault{NcclFault::kNone};
std::atomic<int64_t> fault_after{0};

// What one group does on a communicator, run by the stream's thread (again at each graph launch).
struct Program {
  std::vector<NcclTransfer> sends, recvs;
  std::vector<std::shared_ptr<std::vector<std::byte>>> scratch;
  std::vector<std::function<void()>> local;  // copies and sums, after the exchange, in order
};

}  // namespace

struct ncclComm {
  std::shared_ptr<NcclWorld> world;
  int device = 0;
  bool blocking = true;
  std::atomic<bool> aborted{false};
  std::mutex mutex;
  // Guarded by mutex:
  ncclResult_t state = ncclInProgress;
  std::string error;
  bool joining = true, finalizing = false;
  cudaStream_t pending_stream = nullptr;
  std::shared_ptr<Program> pending;  // a group that did not reach its stream yet
  int polls = 0;
};

namespace {

std::mutex comms_mutex;
std::map<ncclComm_t, std::shared_ptr<ncclComm>> comms;

std::shared_ptr<ncclComm> find(ncclComm_t comm) {
  const std::lock_guard lock(comms_mutex);
  const auto it = comms.find(comm);
  return it == comms.end() ? nullptr : it->second;
}

void run(const std::shared_ptr<ncclComm>& comm, const Program& program) {
  if (fault.load() != NcclFault::kNone && fault_after.fetch_sub(1) == 0) {
    if (fault.load() == NcclFault::kDie) kill(getpid(), SIGKILL);
    while (!comm->aborted.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (comm->aborted.load()) return;
  const std::string mismatch = comm->world->exchange(program.sends, program.recvs, comm->aborted);
  if (!mismatch.empty()) {
    fprintf(stderr, "emulated NCCL: %s\n", mismatch.c_str());
    {
      const std::lock_guard lock(comm->mutex);
      comm->state = ncclInternalError;
      comm->error = mismatch;
    }
    while (!comm->aborted.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (comm->aborted.load()) return;
  for (const auto& step : program.local) step();
}

ncclResult_t launch(const std::shared_ptr<ncclComm>& comm, cudaStream_t stream,
                    std::shared_ptr<Program> program) {
  const cudaError_t error = shoal::emulated::enqueue(
      stream, [comm, program = std::move(program)] { run(comm, *program); });
  if (error == cudaSuccess) return ncclSuccess;
  return fail(ncclUnhandledCudaError, cudaGetErrorString(error));
}

// The state of the communicator, moved on as far as it goes. The caller holds comm->mutex.
ncclResult_t advance(const std::shared_ptr<ncclComm>& comm) {
  if (comm->state != ncclInProgress) return comm->state;
  if (comm->joining && comm->world->all_joined()) {
    comm->joining = false;
    comm->state = ncclSuccess;
    if (comm->world->duplicate_devices()) {
      comm->state = ncclInvalidUsage;
      comm->error = "Duplicate GPU detected";
    }
  } else if (comm->pending != nullptr && comm->polls++ > 0) {
    comm->state = launch(comm, comm->pending_stream, std::move(comm->pending));
    comm->pending = nullptr;
    comm->polls = 0;
  } else if (comm->finalizing && comm->world->all_finalized()) {
    comm->state = ncclSuccess;
  }
  return comm->state;
}

ncclResult_t ensure_ready(const std::shared_ptr<ncclComm>& comm) {
  const std::lock_guard lock(comm->mutex);
  if (comm->state == ncclInProgress) {
    return fail(ncclInvalidArgument,
                "a communicator was used before its previous operation returned ncclSuccess");
  }
  if (comm->finalizing) return fail(ncclInvalidUsage, "a finalized communicator was used");
  if (comm->state != ncclSuccess) return fail(comm->state, comm->error);
  return ncclSuccess;
}

// ---- Groups ------------------------------------------------------------------------------------

struct Part {  // of a group: the calls on one communicator
  std::shared_ptr<ncclComm> comm;
  cudaStream_t stream = nullptr;
  Program program;
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
  if (group.depth == 0) return fail(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0) return ncclSuccess;
  std::vector<Part> parts = std::move(group.parts);
  const ncclResult_t failure = group.failure;
  group = {};
  if (failure != ncclSuccess) return failure;
  ncclResult_t result = ncclSuccess;
  for (Part& part : parts) {
    if (part.own_sends.size() != part.own_recvs.size()) {
      return fail(ncclInvalidUsage, "a send to oneself without a matching receive");
    }
    for (size_t i = 0; i < part.own_sends.size(); ++i) {
      const NcclTransfer from = part.own_sends[i], to = part.own_recvs[i];
      if (from.message != to.message) {
        return fail(ncclInvalidUsage, "a send to oneself and its receive differ");
      }
      part.program.local.push_back(
          [from, to] { std::memmove(to.data, from.data, to.message.bytes); });
    }
    auto program = std::make_shared<Program>(std::move(part.program));
    if (part.comm->blocking) {
      const ncclResult_t launched = launch(part.comm, part.stream, std::move(program));
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
    const std::shared_ptr<ncclComm> comm = find(handle);
    if (comm == nullptr) return fail(ncclInvalidArgument, "no communicator");
    if (const ncclResult_t ready = ensure_ready(comm); ready != ncclSuccess) return ready;
    if (shoal::emulated::device_of(stream) != comm->device) {
      return fail(ncclUnhandledCudaError, "the stream is not of the communicator's device");
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
      return fail(ncclInvalidUsage, "the stand-in takes one stream per communicator and group");
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
  if (bytes == 0 || shoal::emulated::is_device_memory(data, bytes)) return ncclSuccess;
  return fail(ncclInvalidArgument,
              fmt::format("{}: {} bytes at {} are not device memory", what, bytes, data));
}

// Buffers may be the same where the documentation says so (`in_place`), and overlap in no other way.
ncclResult_t check_overlap(const void* send, size_t send_bytes, const void* recv,
                           size_t recv_bytes, bool in_place) {
  const auto* s = static_cast<const std::byte*>(send);
  const auto* r = static_cast<const std::byte*>(recv);
  if (in_place || s + send_bytes <= r || r + recv_bytes <= s) return ncclSuccess;
  return fail(ncclInvalidArgument, "send and receive buffers overlap and are not in place");
}

struct Sizes {
  size_t element, bytes;
};

ncclResult_t check_type(size_t count, ncclDataType_t type, Sizes& sizes) {
  sizes.element = shoal::emulated::nccl_type_size(type);
  if (sizes.element == 0) return fail(ncclInvalidArgument, fmt::format("data type {}", int{type}));
  if (count > (size_t{1} << 40)) return fail(ncclInvalidArgument, fmt::format("count {}", count));
  sizes.bytes = count * sizes.element;
  return ncclSuccess;
}

std::byte* bytes_of(const void* p) {
  return const_cast<std::byte*>(static_cast<const std::byte*>(p));
}

// Adds to `program`: every other rank's `bytes` come into memory of its own; returns the parts in rank
// order, this rank's own at `own`.
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

#define TRY(expression)                                                      \
  do {                                                                       \
    const ncclResult_t tried = (expression);                                 \
    if (tried != ncclSuccess) return tried;                                  \
  } while (0)

ncclResult_t check_root(const Part& part, int root) {
  if (0 <= root && root < part.comm->world->size()) return ncclSuccess;
  return fail(ncclInvalidArgument, fmt::format("root or peer {} of {}", root,
                                               part.comm->world->size()));
}

ncclResult_t check_op(ncclDataType_t type, ncclRedOp_t op) {
  if (shoal::emulated::nccl_reducible(type, op)) return ncclSuccess;
  return fail(ncclInvalidArgument, fmt::format("reduction {} of type {}", int{op}, int{type}));
}

}  // namespace

namespace shoal::emulated {

void inject_nccl_fault(NcclFault kind, int64_t n) {
  fault_after = n;
  fault = kind;
}

void set_nccl_version(int version) { reported_version = version; }

}  // namespace shoal::emulated

// ---- The library's own names -------------------------------------------------------------------

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) return ncclInvalidArgument;
  *version = reported_version.load() != 0 ? reported_version.load() : NCCL_VERSION_CODE;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError: return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (id == nullptr) return fail(ncclInvalidArgument, "null id");
  NcclWorld::Id made{};
  if (!NcclWorld::create(made)) return fail(ncclSystemError, "no shared memory");
  static_assert(sizeof(made) <= sizeof(*id));
  *id = {};
  std::memcpy(id, &made, sizeof(made));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int nranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (out == nullptr) return fail(ncclInvalidArgument, "null communicator");
  *out = nullptr;
  if (nranks < 1 || rank < 0 || rank >= nranks) {
    return fail(ncclInvalidArgument, fmt::format("rank {} of {}", rank, nranks));
  }
  if (nranks > shoal::emulated::kMaxNcclRanks) {
    return fail(ncclInvalidArgument, "more ranks than the stand-in has rings for");
  }
  if (group.depth > 0) {
    return fail(ncclInvalidUsage, "the stand-in makes no communicators inside a group");
  }
  auto comm = std::make_shared<ncclComm>();
  if (config != nullptr) {
    const ncclConfig_t defaults = NCCL_CONFIG_INITIALIZER;
    if (config->magic != defaults.magic || config->size != defaults.size) {
      return fail(ncclInvalidArgument, "a configuration without NCCL_CONFIG_INITIALIZER");
    }
    if (config->blocking != NCCL_CONFIG_UNDEF_INT && config->blocking != 0 &&
        config->blocking != 1) {
      return fail(ncclInvalidArgument, fmt::format("blocking {}", config->blocking));
    }
    comm->blocking = config->blocking != 0;
  }
  if (cudaGetDevice(&comm->device) != cudaSuccess) return fail(ncclUnhandledCudaError, "no device");
  NcclWorld::Id where{};
  std::memcpy(&where, &id, sizeof(where));
  std::string reason;
  comm->world = NcclWorld::join(where, nranks, rank, comm->device, reason);
  if (comm->world == nullptr) return fail(ncclSystemError, reason);
  {
    const std::lock_guard lock(comms_mutex);
    comms[comm.get()] = comm;
  }
  *out = comm.get();
  if (!comm->blocking) return ncclInProgress;
  for (;;) {
    {
      const std::lock_guard lock(comm->mutex);
      if (const ncclResult_t state = advance(comm); state != ncclInProgress) {
        if (state != ncclSuccess) last_error = comm->error;
        return state;
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, nranks, id, rank, nullptr);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr || error == nullptr) return fail(ncclInvalidArgument, "no communicator");
  const std::lock_guard lock(comm->mutex);
  *error = advance(comm);
  if (*error != ncclSuccess && *error != ncclInProgress) last_error = comm->error;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr) return fail(ncclInvalidArgument, "no communicator");
  TRY(ensure_ready(comm));
  {
    const std::lock_guard lock(comm->mutex);
    comm->finalizing = true;
    comm->state = ncclInProgress;
    comm->world->finalize();
  }
  while (comm->blocking) {
    {
      const std::lock_guard lock(comm->mutex);
      if (advance(comm) != ncclInProgress) return ncclSuccess;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr) return fail(ncclInvalidArgument, "no communicator");
  {
    const std::lock_guard lock(comm->mutex);
    if (comm->state == ncclInProgress) {
      return fail(ncclInvalidArgument, "a communicator was destroyed in the middle of an operation");
    }
  }
  const std::lock_guard lock(comms_mutex);
  comms.erase(handle);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr) return fail(ncclInvalidArgument, "no communicator");
  comm->aborted = true;
  const std::lock_guard lock(comms_mutex);
  comms.erase(handle);
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr || count == nullptr) return fail(ncclInvalidArgument, "no communicator");
  TRY(ensure_ready(comm));
  *count = comm->world->size();
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr || rank == nullptr) return fail(ncclInvalidArgument, "no communicator");
  TRY(ensure_ready(comm));
  *rank = comm->world->rank();
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  const std::shared_ptr<ncclComm> comm = find(handle);
  if (comm == nullptr || device == nullptr) return fail(ncclInvalidArgument, "no communicator");
  TRY(ensure_ready(comm));
  *device = comm->device;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() { return end_group(); }

ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    TRY(check_type(count, type, sizes));
    TRY(check_op(type, op));
    TRY(check_buffer(send, sizes.bytes, "send buffer"));
    TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    TRY(check_overlap(send, sizes.bytes, recv, sizes.bytes, send == recv));
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kAllReduce + 16u * op, static_cast<uint32_t>(type), sizes.bytes};
    send_to_others(part, message, bytes_of(send));
    const auto parts = receive_parts(part, message, bytes_of(send));
    part.program.local.push_back(
        [=] { shoal::emulated::nccl_reduce(parts, count, type, op, bytes_of(recv)); });
    return ncclSuccess;
  });
}

ncclResult_t ncclReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    TRY(check_root(part, root));
    TRY(check_type(count, type, sizes));
    TRY(check_op(type, op));
    TRY(check_buffer(send, sizes.bytes, "send buffer"));
    const bool is_root = part.comm->world->rank() == root;
    if (is_root) {
      TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
      TRY(check_overlap(send, sizes.bytes, recv, sizes.bytes, send == recv));
    }
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kReduce + 16u * op, static_cast<uint32_t>(type), sizes.bytes};
    if (!is_root) {
      part.program.sends.push_back({root, message, bytes_of(send)});
      return ncclSuccess;
    }
    const auto parts = receive_parts(part, message, bytes_of(send));
    part.program.local.push_back(
        [=] { shoal::emulated::nccl_reduce(parts, count, type, op, bytes_of(recv)); });
    return ncclSuccess;
  });
}

ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    TRY(check_root(part, root));
    TRY(check_type(count, type, sizes));
    TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    const bool is_root = part.comm->world->rank() == root;
    if (is_root) {
      TRY(check_buffer(send, sizes.bytes, "send buffer"));
      TRY(check_overlap(send, sizes.bytes, recv, sizes.bytes, send == recv));
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
    TRY(check_type(count, type, sizes));
    const int n = part.comm->world->size(), me = part.comm->world->rank();
    std::byte* own = bytes_of(recv) + me * sizes.bytes;
    TRY(check_buffer(send, sizes.bytes, "send buffer"));
    TRY(check_buffer(recv, n * sizes.bytes, "receive buffer"));
    TRY(check_overlap(send, sizes.bytes, recv, n * sizes.bytes, send == own));
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
    TRY(check_type(count, type, sizes));
    TRY(check_op(type, op));
    const int n = part.comm->world->size(), me = part.comm->world->rank();
    const std::byte* own = bytes_of(send) + me * sizes.bytes;
    TRY(check_buffer(send, n * sizes.bytes, "send buffer"));
    TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    TRY(check_overlap(send, n * sizes.bytes, recv, sizes.bytes, recv == own));
    if (count == 0) return ncclSuccess;
    const NcclMessage message{kReduceScatter + 16u * op, static_cast<uint32_t>(type), sizes.bytes};
    for (int r = 0; r < n; ++r) {
      if (r != me) part.program.sends.push_back({r, message, bytes_of(send) + r * sizes.bytes});
    }
    const auto parts = receive_parts(part, message, own);
    part.program.local.push_back(
        [=] { shoal::emulated::nccl_reduce(parts, count, type, op, bytes_of(recv)); });
    return ncclSuccess;
  });
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    TRY(check_root(part, peer));
    TRY(check_type(count, type, sizes));
    TRY(check_buffer(send, sizes.bytes, "send buffer"));
    const NcclTransfer transfer{peer, {kSend, static_cast<uint32_t>(type), sizes.bytes},
                                bytes_of(send)};
    const bool own = peer == part.comm->world->rank();
    (own ? part.own_sends : part.program.sends).push_back(transfer);
    return ncclSuccess;
  });
}

ncclResult_t ncclRecv(void* recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(comm, stream, [=](Part& part) -> ncclResult_t {
    Sizes sizes{};
    TRY(check_root(part, peer));
    TRY(check_type(count, type, sizes));
    TRY(check_buffer(recv, sizes.bytes, "receive buffer"));
    const NcclTransfer transfer{peer, {kSend, static_cast<uint32_t>(type), sizes.bytes},
                                bytes_of(recv)};
    const bool own = peer == part.comm->world->rank();
    (own ? part.own_recvs : part.program.recvs).push_back(transfer);
    return ncclSuccess;
  });
}

}  // extern "C"
