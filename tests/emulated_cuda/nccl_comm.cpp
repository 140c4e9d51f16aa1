// Part of the emulated CUDA device; see README.md. NCCL's communicators, between processes or
// threads. What a real NCCL leaves open is chosen to hurt:
//  - a group on a non-blocking communicator returns ncclInProgress and reaches the stream only when
//  the
//    caller has asked ncclCommGetAsyncError until it says ncclSuccess;
//  - counts or types that differ between ranks are an asynchronous error, and the collective hangs;
//  - a rank that is gone is not noticed: whoever waits for it waits until ncclCommAbort.
#include <fmt/format.h>
#include <nccl.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <thread>

#include "tests/emulated_cuda/nccl_control.h"
#include "tests/emulated_cuda/nccl_state.h"
#include "tests/emulated_cuda/stream_work.h"

namespace shoal::emulated {
namespace {

thread_local std::string last_error;
std::atomic<int> reported_version{0};
std::atomic<NcclFault> fault{NcclFault::kNone};
std::atomic<int64_t> fault_after{0};

std::mutex comms_mutex;
std::map<ncclComm_t, std::shared_ptr<ncclComm>> comms;

void run(const std::shared_ptr<ncclComm>& comm, const NcclProgram& program) {
  trace("NCCL group begins");
  const NcclFault kind = fault.load();
  if (kind == NcclFault::kLate) {
    if (fault_after.fetch_sub(1) <= 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  } else if (kind != NcclFault::kNone && fault_after.fetch_sub(1) == 0) {
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
  trace("NCCL group ends");
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
    comm->state = nccl_launch(comm, comm->pending_stream, std::move(comm->pending));
    comm->pending = nullptr;
    comm->polls = 0;
  } else if (comm->finalizing && comm->world->all_finalized()) {
    comm->state = ncclSuccess;
  }
  return comm->state;
}

}  // namespace

ncclResult_t nccl_fail(ncclResult_t result, std::string text) {
  last_error = std::move(text);
  return result;
}

std::shared_ptr<ncclComm> find_nccl_comm(ncclComm_t comm) {
  const std::lock_guard lock(comms_mutex);
  const auto it = comms.find(comm);
  return it == comms.end() ? nullptr : it->second;
}

ncclResult_t nccl_launch(const std::shared_ptr<ncclComm>& comm, cudaStream_t stream,
                         std::shared_ptr<NcclProgram> program) {
  const cudaError_t error =
      enqueue(stream, [comm, program = std::move(program)] { run(comm, *program); });
  if (error == cudaSuccess) return ncclSuccess;
  return nccl_fail(ncclUnhandledCudaError, cudaGetErrorString(error));
}

ncclResult_t nccl_ready(const std::shared_ptr<ncclComm>& comm) {
  const std::lock_guard lock(comm->mutex);
  if (comm->state == ncclInProgress) {
    return nccl_fail(ncclInvalidArgument,
                     "a communicator was used before its previous operation returned ncclSuccess");
  }
  if (comm->finalizing) return nccl_fail(ncclInvalidUsage, "a finalized communicator was used");
  if (comm->state != ncclSuccess) return nccl_fail(comm->state, comm->error);
  return ncclSuccess;
}

void inject_nccl_fault(NcclFault kind, int64_t n) {
  fault_after = n;
  fault = kind;
}

void set_nccl_version(int version) { reported_version = version; }

}  // namespace shoal::emulated

using shoal::emulated::advance;
using shoal::emulated::comms;
using shoal::emulated::comms_mutex;
using shoal::emulated::find_nccl_comm;
using shoal::emulated::in_nccl_group;
using shoal::emulated::last_error;
using shoal::emulated::nccl_fail;
using shoal::emulated::nccl_ready;
using shoal::emulated::NcclWorld;
using shoal::emulated::reported_version;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) return ncclInvalidArgument;
  *version = reported_version.load() != 0 ? reported_version.load() : NCCL_VERSION_CODE;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError:
      return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (id == nullptr) return nccl_fail(ncclInvalidArgument, "null id");
  NcclWorld::Id made{};
  if (!NcclWorld::create(made)) return nccl_fail(ncclSystemError, "no shared memory");
  static_assert(sizeof(made) <= sizeof(*id));
  *id = {};
  std::memcpy(id, &made, sizeof(made));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int nranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (out == nullptr) return nccl_fail(ncclInvalidArgument, "null communicator");
  *out = nullptr;
  if (nranks < 1 || rank < 0 || rank >= nranks) {
    return nccl_fail(ncclInvalidArgument, fmt::format("rank {} of {}", rank, nranks));
  }
  if (nranks > shoal::emulated::kMaxNcclRanks) {
    return nccl_fail(ncclInvalidArgument, "more ranks than the stand-in has rings for");
  }
  if (in_nccl_group()) {
    return nccl_fail(ncclInvalidUsage, "the stand-in makes no communicators inside a group");
  }
  auto comm = std::make_shared<ncclComm>();
  if (config != nullptr) {
    const ncclConfig_t defaults = NCCL_CONFIG_INITIALIZER;
    if (config->magic != defaults.magic || config->size != defaults.size) {
      return nccl_fail(ncclInvalidArgument, "a configuration without NCCL_CONFIG_INITIALIZER");
    }
    if (config->blocking != NCCL_CONFIG_UNDEF_INT && config->blocking != 0 &&
        config->blocking != 1) {
      return nccl_fail(ncclInvalidArgument, fmt::format("blocking {}", config->blocking));
    }
    comm->blocking = config->blocking != 0;
  }
  if (cudaGetDevice(&comm->device) != cudaSuccess)
    return nccl_fail(ncclUnhandledCudaError, "no device");
  NcclWorld::Id where{};
  std::memcpy(&where, &id, sizeof(where));
  std::string reason;
  comm->world = NcclWorld::join(where, nranks, rank, comm->device, reason);
  if (comm->world == nullptr) return nccl_fail(ncclSystemError, reason);
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
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr || error == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
  const std::lock_guard lock(comm->mutex);
  *error = advance(comm);
  if (*error != ncclSuccess && *error != ncclInProgress) last_error = comm->error;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
  SHOAL_NCCL_TRY(nccl_ready(comm));
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
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
  {
    const std::lock_guard lock(comm->mutex);
    if (comm->state == ncclInProgress) {
      return nccl_fail(ncclInvalidArgument,
                       "a communicator was destroyed in the middle of an operation");
    }
  }
  const std::lock_guard lock(comms_mutex);
  comms.erase(handle);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
  comm->aborted = true;
  const std::lock_guard lock(comms_mutex);
  comms.erase(handle);
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr || count == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
  SHOAL_NCCL_TRY(nccl_ready(comm));
  *count = comm->world->size();
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr || rank == nullptr) return nccl_fail(ncclInvalidArgument, "no communicator");
  SHOAL_NCCL_TRY(nccl_ready(comm));
  *rank = comm->world->rank();
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  const std::shared_ptr<ncclComm> comm = find_nccl_comm(handle);
  if (comm == nullptr || device == nullptr)
    return nccl_fail(ncclInvalidArgument, "no communicator");
  SHOAL_NCCL_TRY(nccl_ready(comm));
  *device = comm->device;
  return ncclSuccess;
}

}  // extern "C"
