#include "parallel/nccl/nccl_comm.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include "kernels/cuda/cuda_check.h"

namespace shoal {
namespace {

using std::chrono::steady_clock;

// What a rank tells the others before they join. Plain bytes: the ranks run one binary.
struct Card {
  int32_t nccl_version = 0;
  int32_t pci_domain = 0, pci_bus = 0, pci_device = 0;
  char uuid[16] = {};
  char host[64] = {};
};

Card own_card(const CudaDevice& device) {
  Card card;
  check_nccl(ncclGetVersion(&card.nccl_version), "ncclGetVersion");
  cudaDeviceProp properties{};
  SHOAL_CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index()));
  card.pci_domain = properties.pciDomainID;
  card.pci_bus = properties.pciBusID;
  card.pci_device = properties.pciDeviceID;
  std::memcpy(card.uuid, properties.uuid.bytes, sizeof(card.uuid));
  gethostname(card.host, sizeof(card.host) - 1);
  return card;
}

bool same_gpu(const Card& a, const Card& b) {
  return a.pci_domain == b.pci_domain && a.pci_bus == b.pci_bus && a.pci_device == b.pci_device &&
         std::memcmp(a.uuid, b.uuid, sizeof(a.uuid)) == 0 &&
         std::strncmp(a.host, b.host, sizeof(a.host)) == 0;
}

std::string version_string(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

// Every rank's card, on every rank.
std::vector<Card> exchange_cards(ProcessGroup& control, const Card& own) {
  const auto gathered = control.gather(std::as_bytes(std::span(&own, 1)));
  std::vector<std::byte> all;
  for (const auto& card : gathered) all.insert(all.end(), card.begin(), card.end());
  control.broadcast(all);
  std::vector<Card> cards(control.size());
  if (all.size() != cards.size() * sizeof(Card)) {
    throw_invalid("the ranks run different versions of Shoal: install one on all nodes");
  }
  std::memcpy(cards.data(), all.data(), all.size());
  return cards;
}

// The same verdict on all ranks, as all see the same cards.
void require_compatible(const std::vector<Card>& cards) {
  for (size_t r = 1; r < cards.size(); ++r) {
    if (cards[r].nccl_version != cards[0].nccl_version) {
      throw_invalid("rank 0 has NCCL {} and rank {} has NCCL {}: install one version on all nodes",
                    version_string(cards[0].nccl_version), r,
                    version_string(cards[r].nccl_version));
    }
  }
  for (size_t r = 1; r < cards.size(); ++r) {
    for (size_t s = 0; s < r; ++s) {
      if (same_gpu(cards[r], cards[s])) {
        throw_invalid(
            "ranks {} and {} were given the same GPU ({:04x}:{:02x}:{:02x} of {}): every rank "
            "needs one of its own",
            s, r, cards[s].pci_domain, cards[s].pci_bus, cards[s].pci_device, cards[s].host);
      }
    }
  }
}

}  // namespace

void check_nccl(ncclResult_t result, const char* call) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  throw DeviceFault(fmt::format("{} failed: {} ({})", call, ncclGetErrorString(result),
                                ncclGetLastError(nullptr)));
}

NcclComm::NcclComm(CudaDevice& device, ProcessGroup& control, std::chrono::milliseconds time_limit)
    : rank_(control.rank()), size_(control.size()), time_limit_(time_limit) {
  require_compatible(exchange_cards(control, own_card(device)));
  std::string failure;
  try {
    join(device, control);
  } catch (const DeviceFault& fault) {
    failure = fault.what();
  }
  // All or none: a rank that joined must not go on to wait for one that did not.
  if (control.min(failure.empty() ? 1 : 0) == 1) return;
  abort();
  throw DeviceFault(failure.empty() ? fmt::format("rank {}: another rank could not join the NCCL "
                                                  "communicator of {} ranks",
                                                  rank_, size_)
                                    : failure);
}

void NcclComm::join(CudaDevice& device, ProcessGroup& control) {
  ncclUniqueId id{};
  ncclResult_t result = ncclSuccess;
  std::vector<std::byte> message;
  if (rank_ == 0) {
    result = ncclGetUniqueId(&id);
    const auto bytes = std::as_bytes(std::span(&id, 1));
    if (result == ncclSuccess) message.assign(bytes.begin(), bytes.end());
  }
  control.broadcast(message);  // empty when there is none
  check_nccl(result, "ncclGetUniqueId");
  if (message.size() != sizeof(id)) {
    throw DeviceFault(fmt::format("rank {}: rank 0 could not start NCCL", rank_));
  }
  std::memcpy(&id, message.data(), sizeof(id));

  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  SHOAL_CUDA_CHECK(cudaSetDevice(device.index()));
  result = ncclCommInitRankConfig(&comm_, size_, id, rank_, &config);
  if (comm_ == nullptr) check_nccl(result, "ncclCommInitRankConfig");
  if (!settle(result)) {
    throw DeviceFault(
        fmt::format("rank {} of {} waited {} s for the others to join the NCCL "
                    "communicator",
                    rank_, size_, time_limit_.count() / 1000.0));
  }
  check_nccl(result, "ncclCommInitRankConfig");
}

bool NcclComm::settle(ncclResult_t& result) {
  const auto start = steady_clock::now();
  for (int64_t polls = 0; result == ncclInProgress; ++polls) {
    const auto waited = steady_clock::now() - start;
    if (waited > time_limit_) return false;
    // NCCL's own thread puts a group on the stream within some 20 us; joining takes seconds.
    if (waited < std::chrono::milliseconds(1)) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) throw DeviceFault("the NCCL communicator was aborted");
    const ncclResult_t called = ncclCommGetAsyncError(comm_, &result);
    if (called != ncclSuccess) result = called;
  }
  return true;
}

void NcclComm::issue(const std::function<void(ncclComm_t)>& calls) {
  ncclResult_t result = ncclSuccess;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) throw DeviceFault("the NCCL communicator was aborted");
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    try {
      calls(comm_);
    } catch (...) {
      ncclGroupEnd();
      throw;
    }
    result = ncclGroupEnd();
    check_nccl(result, "ncclGroupEnd");
  }
  if (!settle(result)) {
    throw DeviceFault(
        fmt::format("NCCL did not start it within {} s", time_limit_.count() / 1000.0));
  }
  check_nccl(result, "ncclCommGetAsyncError");
}

ncclResult_t NcclComm::async_error() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return ncclInProgress;
  if (comm_ == nullptr) return ncclSuccess;
  ncclResult_t result = ncclSuccess;
  const ncclResult_t called = ncclCommGetAsyncError(comm_, &result);
  return called == ncclSuccess ? result : called;
}

void NcclComm::abort() {
  // Far longer than any call that makes progress takes: what needs the other ranks is done by a
  // thread of NCCL's.
  constexpr auto kPatience = std::chrono::seconds(2);
  const auto start = steady_clock::now();
  std::unique_lock lock(mutex_, std::try_to_lock);
  while (!lock && steady_clock::now() - start < kPatience) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    lock.try_lock();
  }
  if (!lock) {
    spdlog::error("rank {}: a thread does not come back from NCCL: cannot abort", rank_);
    return;
  }
  if (comm_ == nullptr) return;
  const ncclResult_t result = ncclCommAbort(comm_);
  comm_ = nullptr;
  if (result != ncclSuccess && result != ncclInProgress) {
    spdlog::error("rank {}: ncclCommAbort: {}", rank_, ncclGetErrorString(result));
  }
}

NcclComm::~NcclComm() {
  if (comm_ == nullptr) return;
  // A rank that is gone does not come to say goodbye: no need to wait as long as in a step.
  time_limit_ = std::min(time_limit_, std::chrono::milliseconds(5000));
  ncclResult_t result = ncclCommFinalize(comm_);
  try {
    if (settle(result) && result == ncclSuccess) {
      ncclCommDestroy(comm_);
      comm_ = nullptr;
      return;
    }
  } catch (const DeviceFault&) {  // aborted by another thread meanwhile: nothing is left to do
  }
  abort();
}

}  // namespace shoal
