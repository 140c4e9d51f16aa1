#include "runtime/checkpoint/model_dir.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

bool plain_name(std::string_view name) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !name.empty() && name.front() != '.' && name.find_first_not_of(kAllowed) == name.npos;
}

// Parts of `text` between slashes; empty unless each is a plain name, which ".." is not.
std::vector<std::string> plain_parts(std::string_view text) {
  std::vector<std::string> parts;
  while (true) {
    const size_t slash = text.find('/');
    parts.emplace_back(text.substr(0, slash));
    if (!plain_name(parts.back())) return {};
    if (slash == text.npos) return parts;
    text.remove_prefix(slash + 1);
  }
}

bool is_commit(std::string_view text) {
  return text.size() == 40 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

struct Place {
  fs::path folder;
  std::string origin;
};

Place hub_cache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const auto hub = variable("HF_HUB_CACHE"); !hub.empty()) return {hub, "HF_HUB_CACHE"};
  if (const auto home = variable("HF_HOME"); !home.empty()) {
    return {fs::path(home) / "hub", "HF_HOME"};
  }
  return {fs::path(variable("HOME")) / ".cache/huggingface/hub", "the default place"};
}

std::string read_ref(const fs::path& ref) {
  constexpr uint64_t kMaxRefBytes = 128;  // a commit is 40 hexadecimal digits
  std::string commit = read_small_file(ref.string(), kMaxRefBytes);
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r')) commit.pop_back();
  if (!is_commit(commit)) {
    throw_invalid("{}: holds {}, should be a commit of 40 hexadecimal digits", ref.string(),
                  in_quotes(commit));
  }
  return commit;
}

}  // namespace

std::string resolve_model_dir(const std::string& model, const std::string& revision) {
  if (model.empty()) throw_invalid("no model given; give a folder or org/name");
  std::error_code error;
  if (fs::exists(model, error)) return model;

  const std::vector<std::string> name = plain_parts(model);
  if (name.size() != 2) {
    throw_invalid("model {}: no such folder, and not of the form org/name", in_quotes(model));
  }
  const std::vector<std::string> ref = plain_parts(revision);
  if (ref.empty()) throw_invalid("revision {}: not a branch, tag or commit", in_quotes(revision));
  const Place place = hub_cache();
  const fs::path folder = place.folder / ("models--" + name[0] + "--" + name[1]);
  if (!fs::is_directory(folder, error)) {
    throw_invalid(
        "model {}: no such folder, and not in the Hugging Face cache: searched {} (from {}); "
        "download it there, or give a folder",
        in_quotes(model), folder.string(), place.origin);
  }
  std::string commit = revision;
  if (!is_commit(revision)) {
    fs::path path = folder / "refs";
    for (const std::string& part : ref) path /= part;
    if (!fs::exists(path, error)) {
      throw_invalid(
          "model {}: revision {} is not in the Hugging Face cache: searched {}; download it "
          "there, or give a folder",
          in_quotes(model), in_quotes(revision), path.string());
    }
    commit = read_ref(path);
  }
  const fs::path snapshot = folder / "snapshots" / commit;
  if (!fs::is_directory(snapshot, error)) {
    throw_invalid(
        "model {}: its snapshot is not in the Hugging Face cache: searched {}; download it "
        "there, or give a folder",
        in_quotes(model), snapshot.string());
  }
  return snapshot.string();
}

}  // namespace shoal
