// CublasLt's plans as text: for people (describe), and tuned ones from run to run (save, load).
//
// The file is JSON. An algorithm is the library's own 64 bytes, which "can be trivially serialized
// and later restored for use with the same version of cuBLAS library" (cublasLt.h), with its main
// settings beside it in words. What is read is held against a checksum and those settings, and the
// library checks each algorithm against the product (cublasLtMatmulAlgoCheck) before it is first
// used.
#include <spdlog/spdlog.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_check.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "shoal cuBLASLt plans";
constexpr int kVersion = 1;
constexpr uintmax_t kMaxFileBytes = 16 << 20;  // some 30,000 plans
constexpr size_t kMaxPlans = 30000;

template <typename T>
int64_t setting(const cublasLtMatmulAlgo_t& algo, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  T value{};
  size_t written = 0;
  // An algorithm that lacks the setting says so with an error: shown as 0.
  if (cublasLtMatmulAlgoConfigGetAttribute(&algo, attribute, &value, sizeof(value), &written) !=
      CUBLAS_STATUS_SUCCESS) {
    return 0;
  }
  return static_cast<int64_t>(value);
}

// {algorithm, tile, stages, split-k}
std::array<int64_t, 4> settings(const cublasLtMatmulAlgo_t& algo) {
  return {setting<int32_t>(algo, CUBLASLT_ALGO_CONFIG_ID),
          setting<uint32_t>(algo, CUBLASLT_ALGO_CONFIG_TILE_ID),
          setting<uint32_t>(algo, CUBLASLT_ALGO_CONFIG_STAGES_ID),
          setting<int32_t>(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM)};
}

std::string to_hex(const cublasLtMatmulAlgo_t& algo) {
  std::string text;
  for (const uint64_t word : algo.data) text += fmt::format("{:016x}", word);
  return text;
}

cublasLtMatmulAlgo_t from_hex(const std::string& text) {
  cublasLtMatmulAlgo_t algo;
  if (text.size() != 16 * std::size(algo.data) ||
      text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    throw std::invalid_argument("an algorithm is not 128 hexadecimal digits");
  }
  for (size_t i = 0; i < std::size(algo.data); ++i) {
    algo.data[i] = std::stoull(text.substr(16 * i, 16), nullptr, 16);
  }
  return algo;
}

// FNV-1a, 64 bits: sees damage, not malice.
std::string checksum(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  return fmt::format("{:016x}", hash);
}

json to_json(const CublasLt::Key& key, const cublasLtMatmulAlgo_t& algo) {
  return {{"product", key.text()},
          {"key",
           {static_cast<int>(key.in), static_cast<int>(key.out), int{key.bias}, key.n, key.k,
            key.tokens, key.ld_x, key.ld_w, key.ld_out, key.align_x, key.align_w, key.align_out}},
          {"settings", settings(algo)},
          {"algorithm", to_hex(algo)}};
}

// Exactly n integers from 0 to 2^31 - 1.
template <size_t n>
std::array<int64_t, n> integers(const json& list) {
  std::array<int64_t, n> numbers;
  if (!list.is_array() || list.size() != n) throw std::invalid_argument("a list of another length");
  for (size_t i = 0; i < n; ++i) {
    if (!list[i].is_number_integer()) throw std::invalid_argument("a number is no integer");
    numbers[i] = list[i].get<int64_t>();
    if (numbers[i] < 0 || numbers[i] > INT32_MAX) {
      throw std::invalid_argument("a number is out of range");
    }
  }
  return numbers;
}

std::pair<CublasLt::Key, cublasLtMatmulAlgo_t> from_json(const json& plan) {
  const auto numbers = integers<12>(plan.at("key"));
  CublasLt::Key key;
  key.in = static_cast<cudaDataType_t>(numbers[0]);
  key.out = static_cast<cudaDataType_t>(numbers[1]);
  key.bias = numbers[2] != 0;
  key.n = numbers[3];
  key.k = numbers[4];
  key.tokens = numbers[5];
  key.ld_x = numbers[6];
  key.ld_w = numbers[7];
  key.ld_out = numbers[8];
  key.align_x = static_cast<int32_t>(numbers[9]);
  key.align_w = static_cast<int32_t>(numbers[10]);
  key.align_out = static_cast<int32_t>(numbers[11]);
  const cublasLtMatmulAlgo_t algo = from_hex(plan.at("algorithm").get<std::string>());
  if (settings(algo) != integers<4>(plan.at("settings"))) {
    throw std::invalid_argument("an algorithm is not what its settings say");
  }
  return {key, algo};
}

}  // namespace

std::string CublasLt::machine() const {
  cudaDeviceProp properties{};
  SHOAL_CUDA_CHECK(cudaGetDeviceProperties(&properties, device_.index()));
  return fmt::format("{}, sm_{}, {} SMs, cuBLASLt {}", properties.name, device_.arch(),
                     device_.num_sms(), cublasLtGetVersion());
}

std::string CublasLt::describe() const {
  std::string text;
  for (const auto& [key, plan] : plans_) {
    text += key.text() + ": ";
    if (!plan.supported) {
      text += "not supported by cuBLASLt\n";
      continue;
    }
    const auto [id, tile, stages, split_k] = settings(plan.chosen.algo);
    const char* source = plan.source == Source::kTuned    ? "tuned"
                         : plan.source == Source::kLoaded ? "tuned before"
                                                          : "heuristic";
    text += fmt::format(
        "algorithm {}, tile {}, stages {}, split-k {}, workspace {} KiB, {:.2f} waves, "
        "{}",
        id, tile, stages, split_k, plan.chosen.workspaceSize / 1024, plan.chosen.wavesCount,
        source);
    text += plan.source == Source::kTuned ? fmt::format(" ({:.1f} us)\n", plan.microseconds) : "\n";
  }
  return text;
}

void CublasLt::save(const std::string& path) const {
  json plans = json::array();
  for (const auto& [key, plan] : plans_) {
    if (plan.supported && plan.source != Source::kHeuristic) {
      plans.push_back(to_json(key, plan.chosen.algo));
    }
  }
  for (const auto& [key, algo] : loaded_) {
    if (!plans_.contains(key)) plans.push_back(to_json(key, algo));
  }
  const std::string sum = checksum(plans.dump());
  const json file = {{"format", kFormat},
                     {"version", kVersion},
                     {"machine", machine()},
                     {"checksum", sum},
                     {"plans", plans}};
  // Whole or not at all: ranks of one node read the same file.
  const std::string part = path + ".part";
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << file.dump(1) << '\n';
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(part, path, error);
  if (!out || error) {
    throw_invalid("cannot write the tuned cuBLASLt plans to {}: {}", path,
                  error ? error.message() : std::strerror(errno));
  }
}

size_t CublasLt::load(const std::string& path) {
  try {
    if (!std::filesystem::is_regular_file(path)) throw std::invalid_argument("no such file");
    if (std::filesystem::file_size(path) > kMaxFileBytes) throw std::invalid_argument("too large");
    std::ifstream in(path, std::ios::binary);
    const json file = json::parse(in);
    if (file.at("format") != kFormat || file.at("version") != kVersion) {
      throw std::invalid_argument(fmt::format("not \"{}\" of version {}", kFormat, kVersion));
    }
    const std::string other = file.at("machine").get<std::string>();
    if (other != machine()) {
      throw std::invalid_argument(fmt::format("made for {:.100}, this is {}", other, machine()));
    }
    const json& plans = file.at("plans");
    if (!plans.is_array() || plans.size() > kMaxPlans)
      throw std::invalid_argument("too many plans");
    if (file.at("checksum") != checksum(plans.dump())) {
      throw std::invalid_argument("damaged: the checksum is another");
    }
    std::map<Key, cublasLtMatmulAlgo_t> loaded;
    for (const json& plan : plans) loaded.insert(from_json(plan));
    loaded_ = std::move(loaded);
    return loaded_.size();
  } catch (const std::exception& e) {
    std::string why = e.what();
    for (char& c : why) {
      if (std::iscntrl(static_cast<unsigned char>(c))) c = ' ';
    }
    spdlog::warn("tuned cuBLASLt plans in {} ignored: {}", path, why);
    return 0;
  }
}

}  // namespace shoal
