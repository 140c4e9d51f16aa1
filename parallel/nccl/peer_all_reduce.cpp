#include "parallel/nccl/peer_all_reduce.h"

#include <cuda_bf16.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/cuda/cuda_check.h"
#include "parallel/nccl/peer_kernels.h"

namespace shoal {
namespace {

using bf16 = __nv_bfloat16;

// [flags | epoch | buffer 0 | buffer 1], each from a multiple of 256 bytes on.
constexpr size_t kFlagBytes = size_t{2} * kPeerBlocks * kMaxPeers * sizeof(uint32_t);
constexpr size_t kEpochBytes = 256;
// Smaller allocations share a block of so many bytes, all of which a handle would give away
// (cudaIpcGetMemHandle).
constexpr size_t kExportUnit = size_t{2} << 20;

// What a rank tells the others. Plain bytes: the ranks run one binary.
struct Offer {
  int32_t ready = 0;
  char host[64] = {};
  cudaIpcMemHandle_t handle{};
};

std::string size_string(int64_t bytes) {
  return bytes >= 1 << 20 ? fmt::format("{} MiB", bytes >> 20) : fmt::format("{} KiB", bytes >> 10);
}

const char* name_of(PeerAllReduce::Way way) {
  switch (way) {
    case PeerAllReduce::Way::kOneShot: return "one-shot";
    case PeerAllReduce::Way::kTwoShot: return "two-shot";
    default: return "NCCL";
  }
}

// Median time of `work` on the stream in nanoseconds. Ranks do not issue it at the same moment, by
// more than a small all-reduce takes: `calls` after each other share that wait.
int64_t median_ns(CudaDevice& device, int calls, const std::function<void()>& work) {
  constexpr int kWarmUps = 2, kRuns = 9;
  cudaEvent_t begin = nullptr, end = nullptr;
  SHOAL_CUDA_CHECK(cudaEventCreate(&begin));
  SHOAL_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int run = 0; run < kWarmUps + kRuns; ++run) {
    SHOAL_CUDA_CHECK(cudaEventRecord(begin, device.stream()));
    for (int call = 0; call < calls; ++call) work();
    SHOAL_CUDA_CHECK(cudaEventRecord(end, device.stream()));
    device.synchronize();
    float milliseconds = 0;
    SHOAL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (run >= kWarmUps) times.push_back(milliseconds);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return static_cast<int64_t>(times[kRuns / 2] * 1e6 / calls);
}

}  // namespace

PeerAllReduce::PeerAllReduce(CudaDevice& device, int rank, int size, size_t buffer_bytes,
                             std::chrono::milliseconds time_limit)
    : device_(device) {
  memory_.rank = rank;
  memory_.size = size;
  memory_.buffer_bytes = (buffer_bytes + 255) / 256 * 256;
  memory_.limit_ns = static_cast<uint64_t>(std::chrono::nanoseconds(time_limit).count());
  const size_t used = kFlagBytes + kEpochBytes + 2 * memory_.buffer_bytes;
  const size_t bytes = (used + kExportUnit - 1) / kExportUnit * kExportUnit;
  void* memory = nullptr;
  SHOAL_CUDA_CHECK(cudaMalloc(&memory, bytes));
  own_ = static_cast<std::byte*>(memory);
  SHOAL_CUDA_CHECK(cudaMemsetAsync(own_, 0, bytes, device.stream()));
  device.synchronize();  // before anybody may set a flag in it
  void* words = nullptr;
  SHOAL_CUDA_CHECK(
      cudaHostAlloc(&words, 2 * sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable));
  host_words_ = static_cast<uint32_t*>(words);
  host_words_[0] = host_words_[1] = 0;
  memory_.stop = host_words_;
  memory_.expired = host_words_ + 1;
  memory_.epoch = reinterpret_cast<uint32_t*>(own_ + kFlagBytes);
}

PeerAllReduce::~PeerAllReduce() {
  disconnect();
  cudaFree(own_);
  cudaFreeHost(host_words_);
}

void PeerAllReduce::disconnect() {
  for (void* memory : opened_) cudaIpcCloseMemHandle(memory);
  opened_.clear();
}

std::unique_ptr<PeerAllReduce> PeerAllReduce::make(CudaDevice& device, ProcessGroup& control,
                                                   size_t buffer_bytes,
                                                   std::chrono::milliseconds time_limit) {
  const int size = control.size();
  if (size == 1) return nullptr;
  if (size > kMaxPeers) {
    spdlog::info("all-reduce: NCCL alone, as {} ranks are more than {}", size, kMaxPeers);
    return nullptr;
  }
  std::unique_ptr<PeerAllReduce> peer(
      new PeerAllReduce(device, control.rank(), size, buffer_bytes, time_limit));
  if (peer->connect(control) && peer->works(control)) return peer;
  peer->disconnect();
  control.barrier();  // nobody frees what another rank still has open
  return nullptr;
}

bool PeerAllReduce::connect(ProcessGroup& control) {
  Offer own;
  gethostname(own.host, sizeof(own.host) - 1);
  own.ready = cudaIpcGetMemHandle(&own.handle, own_) == cudaSuccess;
  std::vector<std::byte> all;
  for (const auto& offer : control.gather(std::as_bytes(std::span(&own, 1)))) {
    all.insert(all.end(), offer.begin(), offer.end());
  }
  control.broadcast(all);
  std::vector<Offer> offers(control.size());
  SHOAL_CHECK(all.size() == offers.size() * sizeof(Offer), "{} bytes of offers", all.size());
  std::memcpy(offers.data(), all.data(), all.size());

  std::string obstacle;
  for (int r = 0; r < control.size() && obstacle.empty(); ++r) {
    void* memory = own_;
    if (offers[r].ready == 0) {
      obstacle = fmt::format("rank {} cannot export memory", r);
    } else if (std::strncmp(offers[r].host, own.host, sizeof(own.host)) != 0) {
      obstacle = fmt::format("rank {} runs on another node", r);
    } else if (r != control.rank()) {
      const cudaError_t error =
          cudaIpcOpenMemHandle(&memory, offers[r].handle, cudaIpcMemLazyEnablePeerAccess);
      if (error != cudaSuccess) {
        obstacle =
            fmt::format("no access to the memory of rank {} ({})", r, cudaGetErrorString(error));
        break;
      }
      opened_.push_back(memory);
    }
    memory_.flags[r] = static_cast<uint32_t*>(memory);
    memory_.data[r] = static_cast<std::byte*>(memory) + kFlagBytes + kEpochBytes;
  }
  cudaGetLastError();  // a refusal is an answer, not a fault to report later
  if (!obstacle.empty()) {
    spdlog::info("all-reduce: NCCL alone: rank {}: {}", control.rank(), obstacle);
  }
  return control.min(obstacle.empty() ? 1 : 0) == 1;
}

bool PeerAllReduce::works(ProcessGroup& control) {
  // Where peer access is promised and broken (an IOMMU between the GPUs), values do not arrive.
  constexpr int64_t kElements = 1000;
  const Buffer memory = device_.allocate(kElements * sizeof(float));
  const Tensor x(memory.data(), DType::kF32, {kElements});
  bool right = true;
  for (const bool two : {false, true}) {
    std::vector<float> values(kElements);
    for (int64_t i = 0; i < kElements; ++i) values[i] = static_cast<float>(i % 100 + memory_.rank);
    device_.copy_to_device(x.data, values.data(), x.num_bytes());
    two ? two_shot(x) : one_shot(x);
    device_.copy_to_host(values.data(), x.data, x.num_bytes());
    const int n = memory_.size;
    for (int64_t i = 0; i < kElements; ++i) {
      right &= values[i] == static_cast<float>(n * (i % 100) + n * (n - 1) / 2);
    }
  }
  if (!right || expired()) {
    spdlog::warn(
        "all-reduce: NCCL alone: rank {}: memory of other GPUs is reachable, but wrong or late",
        control.rank());
  }
  return control.min(right && !expired() ? 1 : 0) == 1;
}

bool PeerAllReduce::takes(const Tensor& x) const {
  // A last pack of 16 bytes that is not full is stored whole.
  return (x.dtype == DType::kF32 || x.dtype == DType::kBF16) && x.contiguous() &&
         (x.num_bytes() + 15) / 16 * 16 <= static_cast<int64_t>(memory_.buffer_bytes);
}

bool PeerAllReduce::takes_rows(const Tensor& x) const {
  if ((x.dtype != DType::kF32 && x.dtype != DType::kBF16) || x.rank != 2) return false;
  const int64_t row_bytes = (x.dim(1) * dtype_size(x.dtype) + 15) / 16 * 16;
  return x.dim(0) * row_bytes <= static_cast<int64_t>(memory_.buffer_bytes);
}

void PeerAllReduce::number_next(uint32_t* word, uint32_t number) {
  memory_.progress = word;
  memory_.number = number;
}

void PeerAllReduce::one_shot(const Tensor& x) {
  SHOAL_CHECK(takes(x), "{}", x.shape_string());
  const int64_t count = x.num_elements();
  if (count == 0) return;
  if (x.dtype == DType::kF32) {
    launch_one_shot(memory_, x.as<float>(), count, device_.stream());
  } else {
    launch_one_shot(memory_, x.as<bf16>(), count, device_.stream());
  }
}

void PeerAllReduce::two_shot(const Tensor& x) {
  SHOAL_CHECK(takes(x), "{}", x.shape_string());
  const int64_t count = x.num_elements();
  if (count == 0) return;
  if (x.dtype == DType::kF32) {
    launch_two_shot(memory_, x.as<float>(), count, device_.stream());
  } else {
    launch_two_shot(memory_, x.as<bf16>(), count, device_.stream());
  }
}

namespace {

template <typename T>
PeerNormArguments<T> norm_arguments(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                    float eps, const Tensor& out) {
  const auto in_vectors = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride[0] * sizeof(T) % 16 == 0;
  };
  return {.x = x.as<T>(),
          .residual = residual.as<T>(),
          .weight = weight.as<float>(),
          .out = out.as<T>(),
          .x_stride = x.stride[0],
          .residual_stride = residual.stride[0],
          .out_stride = out.stride[0],
          .rows = x.dim(0),
          .hidden = x.dim(1),
          .eps = eps,
          .vectors = in_vectors(x) && in_vectors(residual) && in_vectors(out)};
}

}  // namespace

void PeerAllReduce::add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                 float eps, const Tensor& out) {
  SHOAL_CHECK(takes_rows(x) && residual.shape == x.shape && out.shape == x.shape &&
                  residual.dtype == x.dtype && out.dtype == x.dtype &&
                  weight.dtype == DType::kF32 && weight.dim(0) == x.dim(1),
              "{} + {} with {} to {}", residual.shape_string(), x.shape_string(),
              weight.shape_string(), out.shape_string());
  if (x.num_elements() == 0) return;
  if (x.dtype == DType::kF32) {
    launch_add_rms_norm(memory_, norm_arguments<float>(x, residual, weight, eps, out),
                        device_.stream());
  } else {
    launch_add_rms_norm(memory_, norm_arguments<bf16>(x, residual, weight, eps, out),
                        device_.stream());
  }
}

void PeerAllReduce::measure(ProcessGroup& control, const std::function<void(const Tensor&)>& nccl) {
  rows_.clear();
  table_.clear();
  const auto buffer_bytes = static_cast<int64_t>(memory_.buffer_bytes);
  const Buffer memory = device_.allocate(memory_.buffer_bytes);
  device_.zero(memory.data(), memory.bytes());
  // From a token of a small model up to the buffer, in steps of four.
  for (int64_t bytes = std::min<int64_t>(16 << 10, buffer_bytes);; bytes *= 4) {
    bytes = std::min(bytes, buffer_bytes);
    const Tensor x(memory.data(), DType::kBF16, {bytes / 2});
    const std::pair<Way, std::function<void()>> ways[] = {
        {Way::kOneShot, [&] { one_shot(x); }},
        {Way::kTwoShot, [&] { two_shot(x); }},
        {Way::kNccl, [&] { nccl(x); }},
    };
    table_ += fmt::format("{}{}:", table_.empty() ? "" : "; ", size_string(bytes));
    const auto calls = static_cast<int>(std::clamp<int64_t>((1 << 20) / bytes, 1, 16));
    Row row{bytes, Way::kNccl};
    int64_t fastest = INT64_MAX;
    for (const auto& [way, work] : ways) {
      // The slowest rank's: the same number on all ranks, and so the same choice.
      const int64_t ns = -control.min(-median_ns(device_, calls, work));
      table_ += fmt::format("{} {} {:.1f} us", way == Way::kOneShot ? "" : ",", name_of(way),
                            static_cast<double>(ns) / 1000);
      if (ns < fastest) {
        fastest = ns;
        row.way = way;
      }
    }
    rows_.push_back(row);
    // Where NCCL has won twice it wins for all larger ones.
    if (bytes == buffer_bytes ||
        (row.way == Way::kNccl && rows_.size() >= 2 && rows_[rows_.size() - 2].way == Way::kNccl)) {
      break;
    }
  }
  if (memory_.rank == 0) spdlog::info("all-reduce of {} ranks: {}", memory_.size, table_);
}

PeerAllReduce::Way PeerAllReduce::way_for(int64_t bytes) const {
  if (rows_.empty()) return Way::kOneShot;
  for (const Row& row : rows_) {
    if (bytes <= row.bytes) return row.way;
  }
  return Way::kNccl;
}

void PeerAllReduce::abort() { __atomic_store_n(host_words_, 1u, __ATOMIC_RELEASE); }

bool PeerAllReduce::expired() const {
  return __atomic_load_n(host_words_ + 1, __ATOMIC_ACQUIRE) != 0;
}

}  // namespace shoal
