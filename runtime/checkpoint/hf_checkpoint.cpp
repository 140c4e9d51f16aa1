#include "runtime/checkpoint/hf_checkpoint.h"

#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_checkpoint.h"
#include "runtime/checkpoint/packed_weight.h"
#include "runtime/checkpoint/plain_weight.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
// DeepSeek-V3's index, with 91,991 tensors, has 9 MB.
constexpr uint64_t kMaxIndexBytes = uint64_t{256} << 20;

// The file itself, after symbolic links: inside the folder, or in the blobs of the Hugging Face
// cache (snapshots/<commit>/file -> ../../blobs/<hash>).
std::string inside(const fs::path& dir, std::string_view name) {
  std::error_code error;
  const fs::path file = fs::canonical(dir / name, error);
  if (error) throw_invalid("{}: {}", (dir / name).string(), error.message());
  const fs::path parent = file.parent_path();
  const bool cached = dir.parent_path().filename() == "snapshots" &&
                      parent == dir.parent_path().parent_path() / "blobs";
  if (parent != dir && !cached) {
    throw_invalid(
        "{}: a symbolic link out of the checkpoint folder, to {}; copy the file or give the "
        "folder it is in",
        (dir / name).string(), file.string());
  }
  return (dir / name).string();
}

const std::string kWeight = ".weight";
const std::string kScaleInv = "_scale_inv";

// The tensors that a quantised matrix is made of, by the ends of their names.
struct PackedParts {
  std::vector<std::string_view> codes;   // one of them is there
  std::vector<std::string_view> others;
};

PackedParts parts_of(QuantizationMethod method) {
  switch (method) {
    case QuantizationMethod::kNone:
    case QuantizationMethod::kFp8:
      return {{".weight"}, {".weight_scale_inv"}};
    case QuantizationMethod::kCompressedTensors:
      // Scales of activations lie unused.
      return {{".weight", ".weight_packed"},
              {".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
               ".input_scale", ".input_zero_point"}};
    case QuantizationMethod::kAwq:
      return {{".qweight"}, {".qzeros", ".scales"}};
    case QuantizationMethod::kGptq:
      return {{".qweight"}, {".qzeros", ".scales", ".g_idx"}};
  }
  SHOAL_CHECK(false, "method {}", static_cast<int>(method));
}

std::string file_name(const std::string& path) { return fs::path(path).filename().string(); }

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  if (is_gguf(path)) return std::make_unique<GgufCheckpoint>(path);
  return std::make_unique<HfCheckpoint>(path);
}

HfCheckpoint::HfCheckpoint(const std::string& path) {
  std::error_code error;
  const fs::path dir = fs::canonical(path, error);
  if (error) throw_invalid("{}: {}", path, error.message());
  if (!fs::is_directory(dir, error)) throw_invalid("{}: not a folder", path);
  dir_ = dir.string();
  open_files(path);
  quantization_ = read_quantization_config(dir_);
  list_weights();
}

void HfCheckpoint::open_files(const std::string& path) {
  std::error_code error;
  const fs::path dir = dir_;
  std::map<std::string, std::string> index;
  std::vector<std::string> names;
  const std::string index_path = (dir / kIndexFile).string();
  const bool indexed = path_exists(index_path);
  if (indexed) {
    inside(dir, kIndexFile);
    index = parse_checkpoint_index(read_small_file(index_path, kMaxIndexBytes), index_path);
    std::map<std::string, bool> files;
    for (const auto& [tensor, file] : index) files[file] = true;
    for (const auto& [file, unused] : files) names.push_back(file);
  } else if (path_exists((dir / kSingleFile).string())) {
    names.emplace_back(kSingleFile);
  } else {
    throw_invalid("{}: no weights: neither {} nor {} is there{}", path, kSingleFile, kIndexFile,
                  fs::exists(dir / "pytorch_model.bin", error)
                      ? " (pytorch_model.bin is not read: it can hold code)"
                      : "");
  }

  for (const std::string& name : names) {
    const fs::path file = dir / name;
    if (indexed && !path_exists(file.string())) {
      throw_invalid("{}: missing; {} names it", file.string(), kIndexFile);
    }
    files_.push_back(SafetensorsFile::open(inside(dir, name)));
    const SafetensorsFile& opened = *files_.back();
    for (const auto& [tensor, info] : opened.tensors()) {
      if (indexed) {
        const auto it = index.find(tensor);
        if (it == index.end()) {
          throw_invalid("{}: holds tensor {}, which {} does not name", opened.path(),
                        in_quotes(tensor), kIndexFile);
        }
        if (it->second != name) {
          throw_invalid("{}: holds tensor {}, which {} says is in {}", opened.path(),
                        in_quotes(tensor), kIndexFile, it->second);
        }
      }
      tensors_.emplace(tensor, TensorRef{tensor, &opened, &info});
    }
  }
  for (const auto& [tensor, file] : index) {
    if (tensors_.count(tensor) == 0) {
      throw_invalid("{}: tensor {} is not in {}", index_path, in_quotes(tensor), file);
    }
  }
  if (tensors_.empty()) throw_invalid("{}: holds no tensors", path);
}

void HfCheckpoint::list_weights() {
  for (const auto& [name, tensor] : tensors_) {
    const std::string weight = weight_of(name);
    if (weight == name || tensors_.count(weight) == 0) weights_.emplace(weight, name);
  }
}

std::optional<TensorRef> HfCheckpoint::codes_of(const std::string& module) const {
  for (const std::string_view part : parts_of(quantization_.method).codes) {
    std::optional<TensorRef> codes = find(module + std::string(part));
    if (!codes) continue;
    const bool typed = codes->dtype() == DType::kF8E4M3 || codes->dtype() == DType::kI8;
    if (part != kWeight || typed) return codes;
  }
  return std::nullopt;
}

std::string HfCheckpoint::weight_of(const std::string& name) const {
  const PackedParts parts = parts_of(quantization_.method);
  const auto module_before = [&](std::string_view suffix) {
    return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : std::string();
  };
  for (const auto* list : {&parts.codes, &parts.others}) {
    for (const std::string_view part : *list) {
      const std::string module = module_before(part);
      if (module.empty()) continue;
      const std::optional<TensorRef> codes = codes_of(module);
      // Beside a weight that is plain, parts are names of their own: nothing reads them.
      if (codes && (codes->name.ends_with(kWeight) || tensors_.count(module + kWeight) == 0)) {
        return module + kWeight;
      }
    }
  }
  return name;
}

std::vector<std::string> HfCheckpoint::names() const {
  std::vector<std::string> names;
  names.reserve(weights_.size());
  for (const auto& [name, tensor] : weights_) names.push_back(name);
  return names;
}

std::unique_ptr<StoredWeight> HfCheckpoint::matrix(const std::string& name, int64_t n,
                                                   int64_t k) const {
  const std::string full = name + kWeight;
  const auto find_part = [this](const std::string& part) { return find(part); };
  const std::optional<TensorRef> codes = codes_of(name);
  if (codes && (codes->name == full || !find(full))) {
    switch (quantization_.method) {
      case QuantizationMethod::kCompressedTensors:
        return make_compressed_weight(find_part, quantization_, name, n, k);
      case QuantizationMethod::kAwq:
        return make_awq_weight(find_part, quantization_, name, n, k);
      case QuantizationMethod::kGptq:
        return make_gptq_weight(find_part, quantization_, name, n, k);
      case QuantizationMethod::kNone:
      case QuantizationMethod::kFp8:
        break;
    }
  }
  TensorRef tensor = require(full, {n, k});
  const std::optional<TensorRef> scale = find(full + kScaleInv);
  if (tensor.dtype() != DType::kF8E4M3) {
    if (scale) {
      throw_invalid("{} is {} and has a {}; only float8_e4m3 has scales", tensor.where(),
                    dtype_name(tensor.dtype()), in_quotes(scale->name));
    }
    return make_plain_weight(std::move(tensor), n, k);
  }
  if (quantization_.method != QuantizationMethod::kFp8) {
    throw_invalid("{} is float8_e4m3, but config.json has no quantization_config", tensor.where());
  }
  if (!scale) {
    throw_invalid("{} is float8_e4m3, but {} is missing", tensor.where(),
                  in_quotes(full + kScaleInv));
  }
  TensorRef scales = *scale;
  scales.require_type(DType::kF32);
  scales.require_shape({num_groups(n, quantization_.block_rows),
                        num_groups(k, quantization_.block_cols)});
  return make_fp8_weight(std::move(tensor), std::move(scales), n, k, quantization_.block_rows,
                         quantization_.block_cols);
}

std::unique_ptr<StoredWeight> HfCheckpoint::vector(const std::string& name, int64_t n) const {
  return make_plain_vector(require(name, {n}), n);
}

std::optional<TensorRef> HfCheckpoint::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return std::nullopt;
  return it->second;
}

TensorRef HfCheckpoint::require(const std::string& name, const std::vector<int64_t>& shape) const {
  std::optional<TensorRef> tensor = find(name);
  if (!tensor) {
    for (const char* packed : {"_packed", "qweight"}) {
      const std::string other = packed[0] == '_' ? name + packed
                                                 : name.substr(0, name.rfind('.') + 1) + packed;
      if (name.ends_with(kWeight) && find(other)) {
        throw_invalid("{}: {} is there for {}, but config.json does not say how it is quantised",
                      dir_, in_quotes(other), in_quotes(name));
      }
    }
    throw_invalid("{}: tensor {} of shape [{}] is missing", dir_, in_quotes(name),
                  fmt::join(shape, ", "));
  }
  return *std::move(tensor);
}

std::vector<Checkpoint::FileTensor> HfCheckpoint::file_tensors() const {
  std::vector<FileTensor> tensors;
  for (const auto& [name, tensor] : tensors_) {
    tensors.push_back({.name = name,
                       .type = std::string(dtype_name(tensor.dtype())),
                       .shape = tensor.info->shape,
                       .bytes = tensor.info->num_bytes(),
                       .file = file_name(tensor.file->path())});
  }
  return tensors;
}

uint64_t HfCheckpoint::total_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += tensor.info->num_bytes();
  return bytes;
}

}  // namespace shoal
