// The rules of the NCCL stand-in, with two ranks in one process, each a thread with a device of its
// own. What it computes is examined by tests/parallel.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <catch2/catch.hpp>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/emulated_cuda/nccl_control.h"

namespace shoal::emulated {
namespace {

ncclUniqueId new_id() {
  ncclUniqueId id{};
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  return id;
}

// A rank: a device, a stream, device memory of 64 floats, and a communicator.
struct Rank {
  explicit Rank(int device) {
    cudaSetDevice(device);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc(reinterpret_cast<void**>(&data), 64 * sizeof(float));
  }
  ~Rank() {
    if (comm != nullptr) ncclCommDestroy(comm);
    cudaStreamSynchronize(stream);
    cudaFree(data);
    cudaStreamDestroy(stream);
  }
  ncclResult_t all_reduce(size_t count, ncclDataType_t type = ncclFloat32,
                          ncclRedOp_t op = ncclSum) {
    return ncclAllReduce(data, data, count, type, op, comm, stream);
  }
  std::vector<float> values() {
    std::vector<float> host(64);
    cudaMemcpyAsync(host.data(), data, 256, cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    return host;
  }
  void fill(float value) {
    const std::vector<float> host(64, value);
    cudaMemcpyAsync(data, host.data(), 256, cudaMemcpyHostToDevice, stream);
    cudaStreamSynchronize(stream);
  }

  cudaStream_t stream = nullptr;
  float* data = nullptr;
  ncclComm_t comm = nullptr;
};

// Runs body(rank 0 and 1) on two threads.
void on_two_ranks(const std::function<void(int)>& body) {
  std::thread other([&] { body(1); });
  body(0);
  other.join();
}

ncclResult_t async_error(ncclComm_t comm) {
  ncclResult_t error = ncclSuccess;
  return ncclCommGetAsyncError(comm, &error) == ncclSuccess ? error : ncclInvalidArgument;
}

ncclResult_t settled(ncclComm_t comm) {
  ncclResult_t error = async_error(comm);
  while (error == ncclInProgress) {
    std::this_thread::yield();
    error = async_error(comm);
  }
  return error;
}

ncclConfig_t non_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

TEST_CASE("NCCL: version, error texts, the last error") {
  int version = 0;
  CHECK(ncclGetVersion(&version) == ncclSuccess);
  CHECK(version == NCCL_VERSION_CODE);
  CHECK(ncclGetVersion(nullptr) == ncclInvalidArgument);
  set_nccl_version(22703);
  ncclGetVersion(&version);
  CHECK(version == 22703);
  set_nccl_version(0);
  for (int result = 0; result <= ncclNumResults; ++result) {
    CHECK(std::string(ncclGetErrorString(static_cast<ncclResult_t>(result))) != "");
  }
  ncclComm_t comm = nullptr;
  CHECK(ncclCommInitRank(&comm, 2, new_id(), 2) == ncclInvalidArgument);
  CHECK(std::string(ncclGetLastError(nullptr)) == "rank 2 of 2");
}

TEST_CASE("NCCL: bad arguments of joining") {
  ncclComm_t comm = nullptr;
  CHECK(ncclGetUniqueId(nullptr) == ncclInvalidArgument);
  CHECK(ncclCommInitRank(nullptr, 1, new_id(), 0) == ncclInvalidArgument);
  CHECK(ncclCommInitRank(&comm, 0, new_id(), 0) == ncclInvalidArgument);
  CHECK(ncclCommInitRank(&comm, 1, new_id(), -1) == ncclInvalidArgument);
  CHECK(ncclCommInitRank(&comm, 1000, new_id(), 0) == ncclInvalidArgument);
  ncclConfig_t config = non_blocking();
  config.blocking = 2;
  CHECK(ncclCommInitRankConfig(&comm, 1, new_id(), 0, &config) == ncclInvalidArgument);
  config = {};
  CHECK(ncclCommInitRankConfig(&comm, 1, new_id(), 0, &config) == ncclInvalidArgument);
  ncclUniqueId unknown{};
  CHECK(ncclCommInitRank(&comm, 1, unknown, 0) == ncclSystemError);
  CHECK(comm == nullptr);
}

TEST_CASE("NCCL: one rank") {
  Rank rank(0);
  REQUIRE(ncclCommInitRank(&rank.comm, 1, new_id(), 0) == ncclSuccess);
  int count = 0, user_rank = -1, device = -1;
  CHECK(ncclCommCount(rank.comm, &count) == ncclSuccess);
  CHECK(ncclCommUserRank(rank.comm, &user_rank) == ncclSuccess);
  CHECK(ncclCommCuDevice(rank.comm, &device) == ncclSuccess);
  CHECK((count == 1 && user_rank == 0 && device == 0));
  rank.fill(3);
  CHECK(rank.all_reduce(64) == ncclSuccess);
  CHECK(rank.values() == std::vector<float>(64, 3.0f));
  // To itself: a send and a receive of one group, which must fit.
  CHECK(ncclSend(rank.data, 4, ncclFloat32, 0, rank.comm, rank.stream) == ncclInvalidUsage);
  ncclGroupStart();
  ncclSend(rank.data, 4, ncclFloat32, 0, rank.comm, rank.stream);
  ncclRecv(rank.data + 8, 3, ncclFloat32, 0, rank.comm, rank.stream);
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  ncclGroupStart();
  ncclSend(rank.data, 4, ncclFloat32, 0, rank.comm, rank.stream);
  ncclRecv(rank.data + 8, 4, ncclFloat32, 0, rank.comm, rank.stream);
  CHECK(ncclGroupEnd() == ncclSuccess);
  cudaStreamSynchronize(rank.stream);
}

TEST_CASE("NCCL: bad arguments of collectives") {
  Rank rank(0);
  REQUIRE(ncclCommInitRank(&rank.comm, 1, new_id(), 0) == ncclSuccess);
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  CHECK(rank.all_reduce(65) == ncclInvalidArgument);  // beyond the memory
  CHECK(rank.all_reduce(size_t{1} << 60) == ncclInvalidArgument);
  CHECK(rank.all_reduce(4, ncclFloat64) == ncclInvalidArgument);
  CHECK(rank.all_reduce(4, ncclFloat32, ncclAvg) == ncclInvalidArgument);
  CHECK(rank.all_reduce(0) == ncclSuccess);
  float host[4] = {};
  CHECK(ncclAllReduce(host, rank.data, 4, ncclFloat32, ncclSum, rank.comm, rank.stream) ==
        ncclInvalidArgument);
  CHECK(ncclAllReduce(rank.data, rank.data + 1, 4, ncclFloat32, ncclSum, rank.comm, rank.stream) ==
        ncclInvalidArgument);  // overlap
  CHECK(ncclBroadcast(rank.data, rank.data, 4, ncclFloat32, 1, rank.comm, rank.stream) ==
        ncclInvalidArgument);
  CHECK(ncclReduce(rank.data, rank.data, 4, ncclFloat32, ncclSum, -1, rank.comm, rank.stream) ==
        ncclInvalidArgument);
  CHECK(ncclSend(rank.data, 4, ncclFloat32, 1, rank.comm, rank.stream) == ncclInvalidArgument);
  CHECK(ncclAllReduce(rank.data, rank.data, 4, ncclFloat32, ncclSum, nullptr, rank.stream) ==
        ncclInvalidArgument);
  CHECK(ncclCommInitRank(&rank.comm, 1, {}, 0) == ncclSystemError);
}

TEST_CASE("NCCL: an error inside a group makes the group do nothing") {
  Rank rank(0);
  REQUIRE(ncclCommInitRank(&rank.comm, 1, new_id(), 0) == ncclSuccess);
  rank.fill(5);
  ncclGroupStart();
  CHECK(ncclAllReduce(rank.data, rank.data + 32, 4, ncclFloat32, ncclSum, rank.comm, rank.stream) ==
        ncclSuccess);
  CHECK(rank.all_reduce(100) == ncclInvalidArgument);
  CHECK(ncclGroupEnd() == ncclInvalidArgument);
  CHECK(rank.values() == std::vector<float>(64, 5.0f));
}

TEST_CASE("NCCL: a stream of another device, two streams in a group") {
  Rank other(1), rank(0);
  cudaSetDevice(0);
  REQUIRE(ncclCommInitRank(&rank.comm, 1, new_id(), 0) == ncclSuccess);
  CHECK(ncclAllReduce(rank.data, rank.data, 4, ncclFloat32, ncclSum, rank.comm, other.stream) ==
        ncclUnhandledCudaError);
  cudaStream_t second = nullptr;
  cudaStreamCreate(&second);
  ncclGroupStart();
  rank.all_reduce(4);
  CHECK(ncclAllReduce(rank.data, rank.data, 4, ncclFloat32, ncclSum, rank.comm, second) ==
        ncclInvalidUsage);
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  cudaStreamDestroy(second);
}

TEST_CASE("NCCL: blocking communicators, sums, maxima and minima of all types") {
  const ncclUniqueId id = new_id();
  on_two_ranks([&](int r) {
    Rank rank(r);
    const ncclResult_t joined = ncclCommInitRank(&rank.comm, 2, id, r);
    rank.fill(static_cast<float>(r + 1));
    const ncclResult_t sum = rank.all_reduce(16);
    const ncclResult_t max = ncclAllReduce(rank.data + 16, rank.data + 16, 16, ncclFloat32, ncclMax,
                                           rank.comm, rank.stream);
    const ncclResult_t min = ncclAllReduce(rank.data + 32, rank.data + 32, 16, ncclFloat32, ncclMin,
                                           rank.comm, rank.stream);
    const std::vector<float> got = rank.values();
    cudaMemsetAsync(rank.data, r + 1, 256, rank.stream);
    std::vector<ncclResult_t> others;
    for (const ncclDataType_t type :
         {ncclInt8, ncclUint8, ncclInt32, ncclInt64, ncclFloat16, ncclBfloat16}) {
      others.push_back(rank.all_reduce(16, type));
    }
    cudaStreamSynchronize(rank.stream);
    const ncclResult_t finalized = ncclCommFinalize(rank.comm);
    static std::mutex one_at_a_time;  // Catch's assertions are not thread-safe
    const std::lock_guard lock(one_at_a_time);
    CHECK(
        (joined == ncclSuccess && sum == ncclSuccess && max == ncclSuccess && min == ncclSuccess));
    CHECK((got[0] == 3 && got[16] == 2 && got[32] == 1 && got[48] == static_cast<float>(r + 1)));
    for (const ncclResult_t result : others) CHECK(result == ncclSuccess);
    CHECK(finalized == ncclSuccess);
  });
}

TEST_CASE("NCCL: non-blocking communicators are in progress until asked") {
  Rank first(0);
  ncclConfig_t config = non_blocking();
  const ncclUniqueId id = new_id();
  CHECK(ncclCommInitRankConfig(&first.comm, 2, id, 0, &config) == ncclInProgress);
  CHECK(async_error(first.comm) == ncclInProgress);  // rank 1 has not joined
  CHECK(first.all_reduce(4) == ncclInvalidArgument);
  CHECK(ncclCommDestroy(first.comm) == ncclInvalidArgument);
  Rank second(1);
  REQUIRE(ncclCommInitRankConfig(&second.comm, 2, id, 1, &config) == ncclInProgress);
  CHECK(settled(first.comm) == ncclSuccess);
  CHECK(settled(second.comm) == ncclSuccess);

  first.fill(1);
  second.fill(2);
  CHECK(first.all_reduce(64) == ncclInProgress);
  CHECK(first.all_reduce(64) == ncclInvalidArgument);  // the first one is not on the stream yet
  CHECK(second.all_reduce(64) == ncclInProgress);
  CHECK(settled(first.comm) == ncclSuccess);
  CHECK(settled(second.comm) == ncclSuccess);
  CHECK(first.values() == std::vector<float>(64, 3.0f));
  CHECK(second.values() == std::vector<float>(64, 3.0f));

  CHECK(ncclCommFinalize(first.comm) == ncclInProgress);
  CHECK(async_error(first.comm) == ncclInProgress);
  CHECK(ncclCommFinalize(second.comm) == ncclInProgress);
  CHECK(settled(first.comm) == ncclSuccess);
  CHECK(first.all_reduce(4) == ncclInvalidUsage);
  CHECK(settled(second.comm) == ncclSuccess);
}

TEST_CASE("NCCL: one device for two ranks, a rank twice, other numbers of ranks") {
  ncclConfig_t config = non_blocking();
  {
    const ncclUniqueId id = new_id();
    Rank first(0), second(0);
    ncclCommInitRankConfig(&first.comm, 2, id, 0, &config);
    ncclCommInitRankConfig(&second.comm, 2, id, 1, &config);
    CHECK(settled(first.comm) == ncclInvalidUsage);
    CHECK(settled(second.comm) == ncclInvalidUsage);
    CHECK(std::string(ncclGetLastError(first.comm)) == "Duplicate GPU detected");
    CHECK(first.all_reduce(4) == ncclInvalidUsage);
  }
  const ncclUniqueId id = new_id();
  Rank first(0), second(1);
  ncclCommInitRankConfig(&first.comm, 2, id, 0, &config);
  CHECK(ncclCommInitRankConfig(&second.comm, 2, id, 0, &config) == ncclSystemError);
  CHECK(ncclCommInitRankConfig(&second.comm, 3, id, 1, &config) == ncclSystemError);
  CHECK(ncclCommAbort(first.comm) == ncclSuccess);
  CHECK(ncclCommAbort(first.comm) == ncclInvalidArgument);  // it is gone
  first.comm = nullptr;
}

TEST_CASE("NCCL: a rank that does not come holds the stream up until the abort") {
  ncclConfig_t config = non_blocking();
  const ncclUniqueId id = new_id();
  Rank first(0);
  ncclCommInitRankConfig(&first.comm, 2, id, 0, &config);
  Rank second(1);
  ncclCommInitRankConfig(&second.comm, 2, id, 1, &config);
  settled(first.comm);
  settled(second.comm);
  first.all_reduce(4);
  CHECK(settled(first.comm) == ncclSuccess);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(cudaStreamQuery(first.stream) == cudaErrorNotReady);
  CHECK(async_error(first.comm) == ncclSuccess);  // nobody notices
  CHECK(ncclCommAbort(first.comm) == ncclSuccess);
  first.comm = nullptr;
  CHECK(cudaStreamSynchronize(first.stream) == cudaSuccess);
}

}  // namespace
}  // namespace shoal::emulated
