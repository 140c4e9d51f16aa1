#include "tests/bench/model_maker.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/quantization/scheme.h"

namespace shoal::bench {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// xorshift64*: billions of values have to be made, and their quality matters to nobody.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u | 1) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }

 private:
  uint64_t state_;
};

enum class Fill { kOnes, kZeros, kUniform, kFp8, kBytes, kNumbers };

// One tensor of a file.
struct Part {
  std::string name, type;
  std::vector<int64_t> shape;
  Fill fill = Fill::kUniform;
  float amplitude = 0;           // kUniform: values in [-amplitude, amplitude); scales: kOnes times it
  std::vector<int64_t> numbers;  // kNumbers

  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
  uint64_t bytes() const {
    const int64_t size = type == "I64" ? 8 : type == "I32" || type == "F32" ? 4 : type == "BF16" ? 2 : 1;
    return static_cast<uint64_t>(elements() * size);
  }
};

std::string stem_of(const std::string& name) {
  constexpr std::string_view kWeight = ".weight";
  return name.substr(0, name.size() - kWeight.size());
}

// Uniform values whose products keep the size of what they multiply.
float amplitude_of(int64_t k) { return std::sqrt(3.0f / static_cast<float>(k)); }

void add_parts(const PlannedTensor& tensor, const std::string& scheme, std::vector<Part>& parts) {
  if (tensor.k == 0) {
    const bool norm = tensor.name.find("norm.weight") != std::string::npos;
    parts.push_back({tensor.name, "F32", {tensor.n}, norm ? Fill::kOnes : Fill::kZeros, 1, {}});
    return;
  }
  const std::string stem = stem_of(tensor.name);
  const int64_t n = tensor.n, k = tensor.k;
  const float amplitude = amplitude_of(k);
  const auto quantized = scheme == "bf16" || !is_quantizable(stem)
                             ? std::nullopt
                             : parse_scheme("--scheme", scheme).form(k);
  if (!quantized) {
    parts.push_back({tensor.name, "BF16", {n, k}, Fill::kUniform, amplitude, {}});
    return;
  }
  const auto blocks = [](int64_t size, int64_t block) { return (size + block - 1) / block; };
  switch (quantized->dtype) {
    case DType::kI4x2:
      parts.push_back({stem + ".weight_packed", "I32", {n, k / 8}, Fill::kBytes, 0, {}});
      parts.push_back({stem + ".weight_scale", "BF16", {n, blocks(k, quantized->block_cols)}, Fill::kOnes,
                       amplitude / 8, {}});
      parts.push_back({stem + ".weight_shape", "I64", {2}, Fill::kNumbers, 0, {n, k}});
      return;
    case DType::kI8:
      parts.push_back({tensor.name, "I8", {n, k}, Fill::kBytes, 0, {}});
      parts.push_back({stem + ".weight_scale", "BF16", {n, 1}, Fill::kOnes, amplitude / 128, {}});
      return;
    default:
      parts.push_back({tensor.name, "F8_E4M3", {n, k}, Fill::kFp8, 0, {}});
      parts.push_back({tensor.name + "_scale_inv", "F32",
                       {blocks(n, quantized->block_rows), blocks(k, quantized->block_cols)}, Fill::kOnes,
                       amplitude, {}});
  }
}

void fill_values(const Part& part, Random& random, std::vector<std::byte>& out) {
  const auto count = static_cast<size_t>(out.size());
  const auto store = [&](const auto value) {
    for (size_t i = 0; i + sizeof value <= count; i += sizeof value) {
      std::memcpy(out.data() + i, &value, sizeof value);
    }
  };
  switch (part.fill) {
    case Fill::kZeros: std::memset(out.data(), 0, count); return;
    case Fill::kOnes:
      if (part.type == "F32") return store(part.amplitude);
      return store(to_bf16(part.amplitude).bits);
    case Fill::kNumbers: std::memcpy(out.data(), part.numbers.data(), count); return;
    case Fill::kUniform:
      for (size_t i = 0; i < count; i += 2) {
        const float value = static_cast<float>(static_cast<int32_t>(random.next() >> 32)) * 0x1p-31f;
        const uint16_t bits = to_bf16(value * part.amplitude).bits;
        std::memcpy(out.data() + i, &bits, 2);
      }
      return;
    case Fill::kFp8:
      // Magnitudes from 1/8 to below 2: signs, exponents 4 to 7 and mantissas at random.
      for (size_t i = 0; i < count; ++i) {
        const uint64_t bits = random.next() >> 32;
        out[i] = static_cast<std::byte>((bits & 0x87) | (4 + (bits >> 8 & 3)) << 3);
      }
      return;
    case Fill::kBytes:
      for (size_t i = 0; i < count; i += 8) {
        const uint64_t bits = random.next();
        std::memcpy(out.data() + i, &bits, std::min<size_t>(8, count - i));
      }
  }
}

Json quantization_config(const std::string& scheme) {
  if (scheme == "fp8") {
    return {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"},
            {"weight_block_size", {128, 128}}};
  }
  const bool int4 = scheme == "int4";
  Json config = {{"quant_method", "compressed-tensors"},
                 {"format", int4 ? "pack-quantized" : "int-quantized"},
                 {"quantization_status", "compressed"},
                 {"ignore", {"lm_head"}}};
  Json groups = Json::object();
  // A matrix whose columns 128 does not divide has smaller groups.
  for (const int64_t size : {128, 64, 32, 16}) {
    Json weights = {{"num_bits", int4 ? 4 : 8}, {"type", "int"}, {"symmetric", true},
                    {"strategy", int4 ? "group" : "channel"}};
    if (int4) weights["group_size"] = size;
    groups["group_" + std::to_string(groups.size())] = {{"targets", {"Linear"}}, {"weights", weights}};
    if (!int4) break;
  }
  config["config_groups"] = groups;
  return config;
}

class File {
 public:
  explicit File(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "wb"), std::fclose) {
    if (!file_) throw_invalid("--out: {} cannot be written: {}", path, std::strerror(errno));
  }
  void write(const void* data, size_t bytes) {
    if (std::fwrite(data, 1, bytes, file_.get()) != bytes) {
      throw_invalid("--out: writing {} failed: {}", path_, std::strerror(errno));
    }
  }
  void close() {
    if (std::fclose(file_.release()) != 0) {
      throw_invalid("--out: writing {} failed: {}", path_, std::strerror(errno));
    }
  }

 private:
  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

void write_text(const fs::path& path, const std::string& text) {
  File file(path.string());
  file.write(text.data(), text.size());
  file.close();
}

void write_shard(const fs::path& path, const std::vector<Part>& parts, Random& random,
                 const std::function<void(uint64_t)>& wrote) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const Part& part : parts) {
    header[part.name] = {{"dtype", part.type}, {"shape", part.shape},
                         {"data_offsets", {offset, offset + part.bytes()}}};
    offset += part.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  File file(path.string());
  file.write(&length, sizeof length);
  file.write(text.data(), text.size());
  constexpr uint64_t kPiece = uint64_t{4} << 20;
  std::vector<std::byte> piece;
  for (const Part& part : parts) {
    for (uint64_t left = part.bytes(); left > 0;) {
      piece.resize(std::min(left, kPiece));
      fill_values(part, random, piece);
      file.write(piece.data(), piece.size());
      left -= piece.size();
      wrote(piece.size());
    }
  }
  file.close();
}

}  // namespace

void make_model(const MakeModelOptions& options,
                const std::function<void(uint64_t, uint64_t)>& progress) {
  if (options.scheme != "bf16" && options.scheme != "int4" && options.scheme != "int8" &&
      options.scheme != "fp8") {
    throw_invalid("--scheme {}: use bf16, int4, int8 or fp8", options.scheme);
  }
  Json json = Json::parse(options.config);
  json.erase("quantization_config");
  if (options.scheme != "bf16") json["quantization_config"] = quantization_config(options.scheme);
  const ModelConfig config = parse_model_config(json.dump(), "config.json");

  std::vector<std::vector<Part>> shards(1);
  uint64_t all = 0, in_shard = 0;
  for (const PlannedTensor& tensor : tensor_plan(config)) {
    if (in_shard >= options.shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    const size_t first = shards.back().size();
    add_parts(tensor, options.scheme, shards.back());
    for (size_t i = first; i < shards.back().size(); ++i) in_shard += shards.back()[i].bytes();
  }
  for (const auto& shard : shards) {
    for (const Part& part : shard) all += part.bytes();
  }

  const fs::path dir(options.out);
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) throw_invalid("--out {}: {}", options.out, error.message());
  Random random(options.seed);
  uint64_t done = 0;
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_shard(dir / name, shards[i], random, [&](uint64_t bytes) {
      done += bytes;
      if (progress) progress(done, all);
    });
    for (const Part& part : shards[i]) map[part.name] = name;
  }
  write_text(dir / "model.safetensors.index.json",
             Json{{"metadata", {{"total_size", all}}}, {"weight_map", map}}.dump());
  write_text(dir / "config.json", json.dump(2));
  if (options.tokenizer.empty()) return;
  fs::copy_file(options.tokenizer, dir / "tokenizer.json", fs::copy_options::overwrite_existing, error);
  if (error) throw_invalid("--tokenizer {}: {}", options.tokenizer, error.message());
}

}  // namespace shoal::bench
