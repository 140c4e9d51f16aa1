#include "runtime/checkpoint/checkpoint.h"

#include <filesystem>

#include "kernels/base/error.h"
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

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  std::error_code error;
  const fs::path dir = fs::canonical(path, error);
  if (error) throw_invalid("{}: {}", path, error.message());
  if (!fs::is_directory(dir, error)) throw_invalid("{}: not a folder", path);
  Checkpoint checkpoint;
  checkpoint.dir_ = dir.string();

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
    checkpoint.files_.push_back(SafetensorsFile::open(inside(dir, name)));
    const SafetensorsFile& opened = *checkpoint.files_.back();
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
      checkpoint.tensors_.emplace(tensor, Entry{&opened, &info});
    }
  }
  for (const auto& [tensor, file] : index) {
    if (checkpoint.find(tensor) == nullptr) {
      throw_invalid("{}: tensor {} is not in {}", index_path, in_quotes(tensor), file);
    }
  }
  if (checkpoint.tensors_.empty()) throw_invalid("{}: holds no tensors", path);
  return checkpoint;
}

const Checkpoint::Entry* Checkpoint::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, entry] : tensors_) bytes += entry.info->num_bytes();
  return bytes;
}

}  // namespace shoal
