#include "runtime/checkpoint/hf_checkpoint.h"

#include <filesystem>

#include "kernels/base/error.h"
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

std::string file_name(const std::string& path) { return fs::path(path).filename().string(); }

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
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
    if (weight == name) weights_.emplace(name, name);
  }
}

std::string HfCheckpoint::weight_of(const std::string& name) const {
  constexpr std::string_view kScale = "_scale_inv";
  if (!name.ends_with(kScale)) return name;
  const std::string weight = name.substr(0, name.size() - kScale.size());
  const std::optional<TensorRef> tensor = find(weight);
  return tensor && tensor->dtype() == DType::kF8E4M3 ? weight : name;
}

std::vector<std::string> HfCheckpoint::names() const {
  std::vector<std::string> names;
  names.reserve(weights_.size());
  for (const auto& [name, tensor] : weights_) names.push_back(name);
  return names;
}

std::unique_ptr<StoredWeight> HfCheckpoint::matrix(const std::string& name, int64_t n,
                                                   int64_t k) const {
  const std::string full = name + ".weight";
  TensorRef tensor = require(full, {n, k});
  const std::optional<TensorRef> scale = find(full + "_scale_inv");
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
                  in_quotes(full + "_scale_inv"));
  }
  return make_fp8_weight(std::move(tensor), *scale, n, k, quantization_.block_rows,
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
