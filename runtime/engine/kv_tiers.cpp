#include "runtime/engine/kv_tiers.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>

#include <spdlog/spdlog.h>

#include "runtime/memory/device_table.h"

namespace shoal {
namespace {

// What a step may spend on restoring prompts: some 3 ms over PCIe, 10 ms between host memories.
constexpr int64_t kCopyBytesPerStep = int64_t{64} << 20;
// Keys of all files travel in one control message (kMaxControlMessageBytes).
constexpr int64_t kMostFiles = int64_t{1} << 20;
// Until the copies are timed: a page over PCIe at 5 GB/s.
constexpr double kFirstBytesPerSecond = 5e9;
// Of every file of a checkpoint: a tuned model differs from its parent in whole matrices, which are
// larger than a 512th of a file.
constexpr int kSamples = 512, kSampleBytes = 1024, kFirstBytes = 65536;
// Pages of other rounding, or another order of bytes, get another number here.
constexpr const char* kFormat = "shoal kv state 2";

PreemptionMode parse_mode(const std::string& value) {
  if (value == "auto") return PreemptionMode::kAuto;
  if (value == "swap") return PreemptionMode::kSwap;
  if (value == "recompute") return PreemptionMode::kRecompute;
  throw_invalid("--preemption-mode {}: use auto, swap or recompute", value);
}

std::vector<std::byte> to_message(const std::vector<PageKey>& keys) {
  const auto* data = reinterpret_cast<const std::byte*>(keys.data());
  return {data, data + keys.size() * sizeof(PageKey)};
}

std::vector<PageKey> from_message(const std::vector<std::byte>& message) {
  SHOAL_CHECK(message.size() % sizeof(PageKey) == 0, "{} bytes of keys", message.size());
  std::vector<PageKey> keys(message.size() / sizeof(PageKey));
  if (!keys.empty()) std::memcpy(keys.data(), message.data(), message.size());
  return keys;
}

// Rank 0's fingerprint on all ranks: the others need not read the files again.
Sha256 identity_of(const RankRuntime& rank, const LoadedModel& m, const std::string& quantization) {
  std::vector<std::byte> model(sizeof(Sha256));
  if (rank.rank() == 0) {
    const Sha256 own = model_fingerprint(*m.checkpoint);
    std::memcpy(model.data(), own.data(), own.size());
  }
  if (rank.size() > 1) rank.group().broadcast(model);
  const std::string text =
      fmt::format("{}\n{} {}\nweights {} {}\nkv {}\nrank {} of {} dp {}\n", kFormat,
                  rank.on_cpu() ? "cpu" : "cuda", dtype_name(m.dtype), quantization,
                  m.checkpoint->quantization(), m.runner->kv_cache().layout().describe(),
                  m.layout.rank, m.layout.size, m.layout.dp_attention);
  return sha256(bytes_of(text), model);
}

// What the ranks found, for the scheduler: without DP attention what all of them have. The rest is
// removed.
std::vector<std::vector<PageKey>> agree_on_files(RankRuntime& rank, const LoadedModel& m,
                                                 KvCheckpoint& files) {
  std::vector<std::vector<PageKey>> pools;
  for (const auto& message : rank.group().gather(to_message(files.found()))) {
    pools.push_back(from_message(message));
  }
  if (m.layout.dp_attention) return pools;
  std::vector<std::byte> common;
  if (rank.rank() == 0) {
    std::vector<PageKey> keys = std::move(pools.front());
    for (size_t r = 1; r < pools.size(); ++r) {
      const std::set<PageKey> theirs(pools[r].begin(), pools[r].end());
      std::erase_if(keys, [&](const PageKey& key) { return !theirs.contains(key); });
    }
    common = to_message(keys);
  }
  if (rank.size() > 1) rank.group().broadcast(common);
  std::vector<PageKey> keys = from_message(common);
  const std::set<PageKey> kept(keys.begin(), keys.end());
  for (const PageKey& key : files.found()) {
    if (!kept.contains(key)) files.drop(key);
  }
  return {std::move(keys)};
}

void add_samples(const std::string& path, std::vector<std::byte>& text) {
  std::error_code error;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  std::ifstream file(path, std::ios::binary);
  if (error || !file) throw_invalid("{}: cannot be read again", path);
  const auto add = [&](int64_t begin, int64_t count) {
    const size_t before = text.size();
    text.resize(before + static_cast<size_t>(count));
    file.seekg(begin);
    file.read(reinterpret_cast<char*>(text.data() + before), count);
    if (!file) throw_invalid("{}: became shorter", path);
  };
  add(0, std::min<int64_t>(size, kFirstBytes));
  for (int i = 0; i < kSamples && size > kSampleBytes; ++i) {
    add((size - kSampleBytes) / kSamples * i, kSampleBytes);
  }
}

}  // namespace

uint64_t swap_bytes(const TierOptions& options, const RankRuntime& rank) {
  return parse_swap_space(options.swap_space, !rank.on_cpu(), !options.kv_checkpoint_dir.empty(),
                          machine_info().memory_bytes, rank.size());
}

Sha256 model_fingerprint(const Checkpoint& checkpoint) {
  namespace fs = std::filesystem;
  std::string tensors;
  std::set<std::string> files;
  for (const Checkpoint::FileTensor& t : checkpoint.file_tensors()) {
    tensors += fmt::format("{} {} {} {}\n", t.name, t.type, fmt::join(t.shape, ","), t.bytes);
    files.insert(t.file);
  }
  Sha256 sum = sha256(bytes_of(tensors));
  const fs::path path = checkpoint.path();
  const bool folder = fs::is_directory(path);
  if (folder) files.insert("config.json");
  for (const std::string& file : files) {
    std::vector<std::byte> text;
    add_samples(folder ? (path / file).string() : path.string(), text);
    sum = sha256(std::as_bytes(std::span(sum)), text);
  }
  return sum;
}

std::shared_ptr<KvCheckpointDirectory> open_kv_checkpoint(const TierOptions& options,
                                                          const RankRuntime& rank) {
  parse_mode(options.preemption_mode);
  swap_bytes(options, rank);
  if (options.kv_checkpoint_dir.empty()) return nullptr;
  parse_size("--kv-checkpoint-size", options.kv_checkpoint_size);
  if (!options.enable_prefix_caching) {
    throw_invalid(
        "--kv-checkpoint-dir {}: keeps what the prefix cache finds; leave out "
        "--no-enable-prefix-caching",
        options.kv_checkpoint_dir);
  }
  if (options.swap_space == "0") {
    throw_invalid("--swap-space 0: pages of --kv-checkpoint-dir {} pass through it; 1GiB will do",
                  options.kv_checkpoint_dir);
  }
  return std::make_shared<KvCheckpointDirectory>(options.kv_checkpoint_dir, rank.rank());
}

TierConfig attach_tiers(const TierOptions& options, RankRuntime& rank, LoadedModel& m,
                        const std::string& quantization,
                        std::shared_ptr<KvCheckpointDirectory> directory) {
  const PagedKvCache& cache = m.runner->kv_cache();
  const int64_t page_bytes = cache.layout().page_bytes();
  TierConfig tiers;
  tiers.preemption = parse_mode(options.preemption_mode);
  tiers.page_copy_seconds = static_cast<double>(page_bytes) / kFirstBytesPerSecond;
  tiers.copies_per_step =
      static_cast<int32_t>(std::max<int64_t>(kCopyBytesPerStep / page_bytes, 1));
  const auto planned = static_cast<int64_t>(m.plan.ranks.front().swap);
  const int64_t slots = std::min<int64_t>(rank.group().min(planned / page_bytes),
                                          std::numeric_limits<int32_t>::max() / 2);
  if (slots == 0 && (m.plan.options.swap_bytes > 0 || directory != nullptr)) {
    throw_invalid(
        "--swap-space {}: less than a page of the KV cache, which is {} bytes; such as 4GiB",
        options.swap_space, page_bytes);
  }
  if (slots == 0) return tiers;
  tiers.host_pages = static_cast<int32_t>(slots);
  std::unique_ptr<KvCheckpoint> files;
  if (directory != nullptr) {
    const int64_t file_bytes = KvCheckpoint::file_bytes(static_cast<size_t>(page_bytes));
    const auto size =
        static_cast<int64_t>(parse_size("--kv-checkpoint-size", options.kv_checkpoint_size));
    tiers.disk_pages = std::min(rank.group().min(size / file_bytes), kMostFiles);
    if (tiers.disk_pages == 0) {
      throw_invalid(
          "--kv-checkpoint-size {}: less than a page of the KV cache, which takes {} bytes",
          options.kv_checkpoint_size, file_bytes);
    }
    files = std::make_unique<KvCheckpoint>(
        std::move(directory), KvCheckpoint::Options{.identity = identity_of(rank, m, quantization),
                                                    .page_bytes = static_cast<size_t>(page_bytes),
                                                    .max_pages = tiers.disk_pages});
    tiers.on_disk = agree_on_files(rank, m, *files);
  }
  m.runner->set_page_store(std::make_unique<PageStore>(rank.device(), cache,
                                                       m.layout.dp_attention ? m.layout.rank : -1,
                                                       tiers.host_pages, std::move(files)));
  if (rank.rank() == 0) {
    spdlog::info("below the KV cache: {} pages in host memory ({}), {} of {} in {}", slots,
                 gib_text(static_cast<uint64_t>(slots * page_bytes)),
                 tiers.on_disk.empty() ? 0 : tiers.on_disk.front().size(), tiers.disk_pages,
                 options.kv_checkpoint_dir.empty() ? "no files" : options.kv_checkpoint_dir);
  }
  return tiers;
}

}  // namespace shoal
