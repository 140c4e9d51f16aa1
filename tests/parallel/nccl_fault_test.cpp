// Ranks that die or stall inside a collective, and machines that do not fit: every rank that is
// left ends with one line that says what, where and when, and none hangs. On the emulated device
// only, whose NCCL notices a dead rank as little as the real one.
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <csignal>
#include <functional>
#include <future>
#include <thread>

#include "kernels/cuda/cuda_backend.h"
#include "parallel/nccl/nccl_collectives.h"
#include "tests/emulated_cuda/nccl_control.h"
#include "tests/parallel/support/forked_ranks.h"

namespace shoal::test {
namespace {

using emulated::NcclFault;

constexpr int kRanks = 3;
constexpr int kVictim = 1;
// Above the pauses of a machine that does much else, so that nothing but the fault is reported.
constexpr auto kLimit = std::chrono::milliseconds(1000);

// Runs steps of two layers until one throws; the victim's fault is in step 2, layer 1.
enum class Verb { kAllReduce, kAllToAll, kCounts, kPeerMemory, kGraph, kBeside };

std::string run_steps(ProcessGroup& group, Verb verb, NcclFault fault) {
  CudaDevice device(group.rank());
  NcclCollectives comm(device, group,
                       {.time_limit = kLimit,
                        .peer_memory = verb == Verb::kPeerMemory,
                        .peer_buffer_bytes = 16 << 10,
                        .measure = false});
  const Buffer memory = device.allocate(kRanks * 1024 * 4),
               received = device.allocate(kRanks * 1024 * 4);
  device.zero(memory.data(), memory.bytes());
  const Tensor x(memory.data(), DType::kF32, {kRanks, 1024});
  const Tensor y(received.data(), DType::kF32, {kRanks, 1024});
  const std::vector<int64_t> ones(kRanks, 1);
  const auto layer = [&](int l) {
    comm.at_layer(l);
    std::vector<int64_t> counts(kRanks);
    switch (verb) {
      case Verb::kAllToAll: return comm.all_to_all_rows(x, ones, y, ones);
      case Verb::kCounts: return comm.all_to_all_counts(ones, counts);
      case Verb::kBeside: {  // on the device's second stream, which the first then waits for
        const auto ended = device.beside(*device.record(),
                                         [&] { comm.all_to_all_rows(x, ones, y, ones); });
        return device.order_after(*ended);
      }
      default: return comm.all_reduce_sum(x);
    }
  };
  std::unique_ptr<DeviceGraph> graph;
  if (verb == Verb::kGraph) {
    graph = device.capture([&] {
      layer(0);
      layer(1);
    });
  }
  group.barrier();
  const bool victim = group.rank() == kVictim;
  if (victim && verb != Verb::kPeerMemory) emulated::inject_nccl_fault(fault, 2 * 2 + 1);
  for (uint64_t step = 0; step < 5; ++step) {
    comm.at_step(step);
    if (graph) {
      graph->launch();
    } else {
      for (int l = 0; l < 2; ++l) {
        if (victim && verb == Verb::kPeerMemory && step == 2 && l == 1) {
          device.synchronize();
          kill(getpid(), SIGKILL);
        }
        layer(l);
      }
    }
    device.synchronize();
  }
  return "no fault seen";
}

void check_reports(const std::vector<RankResult>& results, NcclFault fault,
                   const std::string& verb) {
  for (int r = 0; r < kRanks; ++r) {
    CAPTURE(r, verb, results[r].report);
    CHECK(!results[r].hung);
    if (r == kVictim && fault == NcclFault::kDie) {
      CHECK(results[r].killed);
      continue;
    }
    CHECK_THAT(results[r].report,
               Catch::StartsWith("threw: rank " + std::to_string(r) + " of 3: "));
    CHECK_THAT(results[r].report, Catch::Contains(verb) && Catch::Contains("step 2") &&
                                      Catch::Contains("layer 1") && Catch::Contains(" bytes ") &&
                                      Catch::Contains("another rank is late or gone"));
  }
}

TEST_CASE("a rank dies or stalls inside a collective: the others say where") {
  const std::pair<Verb, std::string> verbs[] = {{Verb::kAllReduce, "all_reduce_sum of 12288"},
                                                {Verb::kAllToAll, "all_to_all_rows of 16384"},
                                                {Verb::kCounts, "all_to_all_counts of 72"},
                                                {Verb::kBeside, "all_to_all_rows of 16384"},
                                                {Verb::kGraph, "a recorded graph"}};
  for (const auto& [verb, name] : verbs) {
    for (const NcclFault fault : {NcclFault::kDie, NcclFault::kStall}) {
      check_reports(
          run_forked(kRanks, [&, verb = verb](
                                 ProcessGroup& group) { return run_steps(group, verb, fault); }),
          fault, name);
    }
  }
}

TEST_CASE("a rank dies before an all-reduce over peer memory: the others' kernels end") {
  check_reports(run_forked(kRanks,
                           [](ProcessGroup& group) {
                             return run_steps(group, Verb::kPeerMemory, NcclFault::kDie);
                           }),
                NcclFault::kDie, "all_reduce_sum of 12288");
}

TEST_CASE("after a fault every call throws it again") {
  const auto results = run_forked(2, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    NcclCollectives comm(device, group, {.time_limit = kLimit, .peer_memory = false});
    const Buffer memory = device.allocate(64);
    const Tensor x(memory.data(), DType::kF32, {16});
    if (group.rank() == 1) {
      group.barrier();
      return "did not come";
    }
    std::string texts;
    for (int i = 0; i < 3; ++i) {
      try {
        comm.all_reduce_sum(x);
        device.synchronize();
      } catch (const DeviceFault& fault) {
        if (i > 0 && texts != fault.what()) return std::string("changed to ") + fault.what();
        texts = fault.what();
      }
    }
    group.barrier();
    return texts;
  });
  CHECK_THAT(results[0].report, Catch::StartsWith("rank 0 of 2: all_reduce_sum of 64 bytes"));
  CHECK(results[1].report == "did not come");
}

TEST_CASE("a GPU that does not react to the abort ends the process, saying so") {
  const auto results = run_forked(2, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    NcclComm comm(device, group, kLimit);
    std::atomic<bool> aborted{false};
    std::promise<std::string> last_words;
    Watchdog watchdog(device, group.rank(), 2, std::chrono::milliseconds(50),
                      {.async_error = [] { return ncclSuccess; },
                       .abort = [&] { aborted = true; },
                       .last_resort = [&](const std::string& why) { last_words.set_value(why); }},
                      std::chrono::milliseconds(50));
    const Buffer memory = device.allocate(64);
    if (group.rank() == 0) {
      Watchdog::Scope scope(watchdog, "all_reduce_sum", 64, {.step = 7, .layer = 3});
      comm.issue([&](ncclComm_t nccl) {
        check_nccl(ncclAllReduce(memory.data(), memory.data(), 16, ncclFloat32, ncclSum, nccl,
                                 device.stream()),
                   "ncclAllReduce");
      });
    }
    std::string words = group.rank() == 0 ? last_words.get_future().get() : "";
    if (group.rank() == 0 && !aborted) words = "not aborted";
    comm.abort();  // so that this test can end
    return words;
  });
  CHECK_THAT(results[0].report,
             Catch::StartsWith(
                 "rank 0 of 2: all_reduce_sum of 64 bytes (collective 0, step 7, layer 3)") &&
                 Catch::EndsWith("the GPU does not react to the abort"));
}

TEST_CASE("a driver that does not answer the watchdog ends the process, saying so") {
  const auto results = run_forked(1, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    std::promise<std::string> last_words;
    std::promise<void> answer;
    Watchdog watchdog(device, 0, 2, std::chrono::milliseconds(50),
                      {.async_error =
                           [&] {
                             answer.get_future().wait();
                             return ncclSuccess;
                           },
                       .abort = [] {},
                       .last_resort = [&](const std::string& why) { last_words.set_value(why); }},
                      std::chrono::milliseconds(50));
    { Watchdog::Scope scope(watchdog, "all_reduce_sum", 64, {.step = 7, .layer = 3}); }
    const std::string words = last_words.get_future().get();
    answer.set_value();
    return words;
  });
  CHECK_THAT(results[0].report, Catch::EndsWith("the driver does not answer"));
}

TEST_CASE("a thread that does not come back from NCCL holds up neither the looks nor the abort") {
  const auto results = run_forked(2, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    NcclComm comm(device, group, kLimit);
    std::promise<void> inside, leave;
    std::thread stuck([&] {
      comm.issue([&](ncclComm_t) {
        inside.set_value();
        leave.get_future().wait();
      });
    });
    inside.get_future().wait();
    std::string report = comm.async_error() == ncclInProgress ? "in progress" : "another answer";
    comm.abort();
    leave.set_value();
    stuck.join();
    comm.abort();
    return report;
  });
  for (const RankResult& result : results) {
    CHECK(!result.hung);
    CHECK(result.report == "in progress");
  }
}

TEST_CASE("the control plane reports a lost peer: no waiting for the time limit") {
  const auto results = run_forked(2, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    NcclCollectives comm(device, group,
                         {.time_limit = std::chrono::minutes(10), .peer_memory = false});
    group.barrier();
    if (group.rank() == 1) kill(getpid(), SIGKILL);
    const Buffer memory = device.allocate(64);
    comm.all_reduce_sum(Tensor(memory.data(), DType::kF32, {16}));
    std::string control;
    try {
      group.barrier();
    } catch (const DeviceFault& fault) {
      comm.watchdog().peer_lost(fault.what());
    }
    device.synchronize();
    return "no fault seen";
  });
  CHECK(!results[0].hung);
  CHECK_THAT(results[0].report, Catch::Contains("rank 0 of 2: control: rank 1 is gone") &&
                                    Catch::Contains("all_reduce_sum of 64 bytes"));
}

TEST_CASE("ranks that disagree about the size: an error of NCCL, on a rank at least, and no hang") {
  const auto results = run_forked(2, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    NcclCollectives comm(device, group, {.time_limit = kLimit, .peer_memory = false});
    const Buffer memory = device.allocate(256);
    comm.all_reduce_sum(Tensor(memory.data(), DType::kF32, {16 + group.rank()}));
    device.synchronize();
    return "no fault seen";
  });
  for (const RankResult& result : results) {
    CHECK(!result.hung);
    CHECK_THAT(result.report, Catch::Contains("all_reduce_sum") && Catch::Contains("NCCL reports"));
  }
}

// Every rank's one line, which must be the same.
std::string common_report(const std::function<std::string(ProcessGroup&)>& body) {
  const auto results = run_forked(kRanks, body);
  for (const RankResult& result : results) {
    CHECK(!result.hung);
    CHECK(result.report == results[0].report);
    CHECK(result.report.find('\n') == std::string::npos);
  }
  return results[0].report;
}

TEST_CASE("ranks with different NCCL versions are refused on all ranks") {
  CHECK_THAT(common_report([](ProcessGroup& group) -> std::string {
               if (group.rank() == 2) emulated::set_nccl_version(22703);
               CudaDevice device(group.rank());
               NcclCollectives comm(device, group, {.time_limit = kLimit});
               return "accepted";
             }),
             Catch::Contains("rank 0 has NCCL 2.28.9 and rank 2 has NCCL 2.27.3"));
}

TEST_CASE("two ranks on one GPU are refused on all ranks") {
  CHECK_THAT(common_report([](ProcessGroup& group) -> std::string {
               CudaDevice device(group.rank() == 2 ? 0 : group.rank());
               NcclCollectives comm(device, group, {.time_limit = kLimit});
               return "accepted";
             }),
             Catch::Contains("ranks 0 and 2 were given the same GPU"));
}

// A control group in which something happens on the way: `before_broadcast(n)` before the n-th one,
// and `change(n, message)` to what this rank gives to the n-th gather, both from 0.
class AlteredGroup final : public ProcessGroup {
 public:
  explicit AlteredGroup(ProcessGroup& group) : group_(group) {}
  std::function<void(int)> before_broadcast = [](int) {};
  std::function<void(int, std::vector<std::byte>&)> change = [](int, std::vector<std::byte>&) {};

  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  void broadcast(std::vector<std::byte>& message) override {
    before_broadcast(broadcasts_++);
    group_.broadcast(message);
  }
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> message) override {
    std::vector<std::byte> changed(message.begin(), message.end());
    change(gathers_++, changed);
    return group_.gather(changed);
  }
  int64_t min(int64_t value) override { return group_.min(value); }
  void barrier() override { group_.barrier(); }
  [[noreturn]] void abort(const std::string& reason) override {
    group_.abort(reason);
    std::terminate();
  }

 private:
  ProcessGroup& group_;
  int broadcasts_ = 0, gathers_ = 0;
};

constexpr int kIdBroadcast = 1;  // after that of the cards
constexpr int kOfferGather = 1;  // likewise

TEST_CASE("a rank that dies while the others join") {
  for (const int victim : {0, kVictim}) {
    const auto results = run_forked(kRanks, [victim](ProcessGroup& group) -> std::string {
      CudaDevice device(group.rank());
      AlteredGroup altered(group);
      altered.before_broadcast = [&](int n) {
        if (group.rank() == victim && n == kIdBroadcast) kill(getpid(), SIGKILL);
      };
      NcclCollectives comm(device, altered, {.time_limit = kLimit});
      return "joined";
    });
    for (int r = 0; r < kRanks; ++r) {
      CAPTURE(victim, r, results[r].report);
      CHECK(!results[r].hung);
      CHECK(results[r].killed == (r == victim));
      if (r != victim) CHECK_THAT(results[r].report, Catch::StartsWith("threw: "));
    }
  }
}

TEST_CASE("a rank that joins too late: all ranks give up") {
  const auto results = run_forked(kRanks, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    AlteredGroup altered(group);
    altered.before_broadcast = [&](int n) {
      if (group.rank() == kVictim && n == kIdBroadcast) std::this_thread::sleep_for(3 * kLimit);
    };
    NcclCollectives comm(device, altered, {.time_limit = kLimit});
    return "joined";
  });
  for (int r = 0; r < kRanks; ++r) {
    CAPTURE(r, results[r].report);
    CHECK(!results[r].hung);
    CHECK_THAT(results[r].report, Catch::StartsWith("threw: rank " + std::to_string(r)) &&
                                      Catch::Contains("join the NCCL communicator"));
  }
}

TEST_CASE("a call that NCCL refuses names the collective") {
  const auto results = run_forked(2, [](ProcessGroup& group) -> std::string {
    CudaDevice device(group.rank());
    NcclCollectives comm(device, group, {.time_limit = kLimit, .peer_memory = false});
    float host[16] = {};
    const Buffer memory = device.allocate(64);
    void* data = group.rank() == 1 ? host : memory.data();  // on rank 1 no device memory
    comm.all_reduce_sum(Tensor(data, DType::kF32, {16}));
    device.synchronize();
    return "no fault seen";
  });
  CHECK_THAT(results[1].report, Catch::Contains("rank 1 of 2: all_reduce_sum of 64 bytes") &&
                                    Catch::Contains("ncclAllReduce failed: invalid argument"));
  CHECK_THAT(results[0].report, Catch::Contains("another rank is late or gone"));
}

TEST_CASE("GPUs that cannot reach each other's memory: NCCL alone, on all ranks") {
  // Of an offer: whether there is one, the host, the handle.
  for (const size_t changed_byte : {size_t{0}, size_t{4}, size_t{4 + 64 + 20}}) {
    const auto results = run_forked(2, [&](ProcessGroup& group) -> std::string {
      CudaDevice device(group.rank());
      AlteredGroup altered(group);
      altered.change = [&](int n, std::vector<std::byte>& message) {
        if (group.rank() != kVictim || n != kOfferGather) return;
        message.at(changed_byte) ^= std::byte{1};
        if (changed_byte > 68) std::fill(message.begin() + 68, message.end(), std::byte{0x5a});
      };
      NcclCollectives comm(device, altered, {.time_limit = kLimit});
      const Buffer memory = device.allocate(64);
      std::vector<float> values(16, static_cast<float>(group.rank() + 1));
      device.copy_to_device(memory.data(), values.data(), 64);
      comm.all_reduce_sum(Tensor(memory.data(), DType::kF32, {16}));
      device.copy_to_host(values.data(), memory.data(), 64);
      const bool right = values == std::vector<float>(16, 3.0f);
      return std::string(comm.peer() == nullptr ? "NCCL alone" : "peer memory") +
             (right ? "" : ", wrong");
    });
    for (const RankResult& result : results) {
      CAPTURE(changed_byte);
      CHECK(!result.hung);
      CHECK(result.report == "NCCL alone");
    }
  }
}

TEST_CASE("a rank that sends what is no card: one line on all ranks") {
  CHECK_THAT(
      common_report([](ProcessGroup& group) -> std::string {
        if (group.rank() == kVictim) {
          std::vector<std::byte> message(7);
          group.gather(message);
          group.broadcast(message);
          throw InvalidInput("the ranks run different versions of Shoal: install one on all nodes");
        }
        CudaDevice device(group.rank());
        NcclCollectives comm(device, group, {.time_limit = kLimit});
        return "accepted";
      }),
      Catch::Contains("different versions of Shoal"));
}

}  // namespace
}  // namespace shoal::test
