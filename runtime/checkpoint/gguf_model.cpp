#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

// More parts than any published model has.
constexpr int64_t kMaxParts = 1024;

GgufHeader read_header(const InputFile& file) {
  return parse_gguf_header(
      [&](uint64_t begin, uint64_t end, void* out) { file.read(begin, end, out); }, file.size(),
      file.path());
}

std::string part_suffix(int64_t part, int64_t parts) {
  return fmt::format("-{:05}-of-{:05}.gguf", part, parts);
}

}  // namespace

std::unique_ptr<GgufModel> GgufModel::open(const std::string& path) {
  auto model = std::make_unique<GgufModel>();
  model->path_ = path;
  model->files_.push_back(InputFile::open(path));
  model->headers_.push_back(read_header(*model->files_.front()));
  const GgufMetadata& metadata = model->headers_.front().metadata;

  const int64_t parts = metadata.integer("split.count").value_or(1);
  if (parts < 1 || parts > kMaxParts) {
    metadata.refuse("split.count", fmt::format("should be 1 to {}", kMaxParts));
  }
  if (parts > 1) {
    const std::string suffix = part_suffix(1, parts);
    if (metadata.integer("split.no").value_or(0) != 0 || !path.ends_with(suffix)) {
      throw_invalid("{}: a part of a model of {} files; give the first of them, named *{}", path,
                    parts, suffix);
    }
    const std::string stem = path.substr(0, path.size() - suffix.size());
    for (int64_t part = 1; part < parts; ++part) {
      model->files_.push_back(InputFile::open(stem + part_suffix(part + 1, parts)));
      model->headers_.push_back(read_header(*model->files_.back()));
      const GgufMetadata& other = model->headers_.back().metadata;
      if (other.integer("split.no") != part) {
        other.refuse("split.no", fmt::format("should be {}", part));
      }
      if (other.integer("split.count") != parts) {
        other.refuse("split.count", fmt::format("should be {}", parts));
      }
    }
  }
  for (size_t i = 0; i < model->files_.size(); ++i) {
    for (const auto& [name, info] : model->headers_[i].tensors) {
      const auto [it, inserted] =
          model->tensors_.emplace(name, Entry{model->files_[i].get(), &info});
      if (!inserted) {
        throw_invalid("{}: holds tensor {}, which {} holds too", model->files_[i]->path(),
                      in_quotes(name), it->second.file->path());
      }
    }
  }
  const GgufMetadata& first = model->metadata();
  const auto total = first.integer("split.tensors.count");
  if (total && *total != static_cast<int64_t>(model->tensors_.size())) {
    first.refuse("split.tensors.count",
                 fmt::format("the files hold {} tensors", model->tensors_.size()));
  }
  if (model->tensors_.empty()) throw_invalid("{}: holds no tensors", path);
  return model;
}

const GgufModel::Entry* GgufModel::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t GgufModel::total_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, entry] : tensors_) bytes += entry.info->end - entry.info->begin;
  return bytes;
}

}  // namespace shoal
