// A folder of quantised safetensors: config.json, a zero byte, the header, a zero byte, the data.
// (Headers that lie about their own length: fuzz_safetensors.) Every matrix that the tensors' shapes could
// mean is opened and, where that is accepted, decoded whole and in a slice, which has to agree.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/quantization/decode.h"

namespace {

// Elements of a matrix that is decoded: inputs of some KB hold no larger ones.
constexpr int64_t kMostElements = 1 << 16;
constexpr size_t kMostNames = 16;

void require(bool condition) {
  if (!condition) std::abort();
}

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "shoal-fuzz-XXXXXX").string();
    require(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream file(path_ + "/" + name, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    require(file.good());
  }

 private:
  std::string path_;
};

template <typename Body>
void lets_invalid_input_through(const Body& body) {
  try {
    body();
  } catch (const shoal::InvalidInput&) {
  }
}

void decode(const shoal::StoredWeight& weight) {
  const int64_t n = weight.n(), k = weight.k();
  require(weight.form().row_bytes(k) > 0 && weight.stored_bytes({0, n}, {0, k}) > 0);
  std::vector<float> all(n * k);
  decode_weight(weight, {0, n}, {0, k}, all.data());
  const shoal::Range rows{n / 2, n}, cols{k / 4 * 2, k};
  if (cols.size() == 0) return;
  std::vector<float> some(rows.size() * cols.size());
  decode_weight(weight, rows, cols, some.data());
  for (int64_t i = rows.begin; i < rows.end; ++i) {  // bits: a product may be no number
    require(std::memcmp(&some[(i - rows.begin) * cols.size()], &all[i * k + cols.begin],
                        cols.size() * sizeof(float)) == 0);
  }
}

// [n, k] of the matrices that could be packed into tensors of these shapes: as they are, several numbers
// a word along rows (compressed-tensors), transposed (AWQ), along columns (GPTQ).
std::set<std::pair<int64_t, int64_t>> possible_shapes(const shoal::Checkpoint& checkpoint) {
  std::set<std::pair<int64_t, int64_t>> shapes;
  for (const auto& tensor : checkpoint.file_tensors()) {
    if (tensor.shape.size() != 2) continue;
    const int64_t a = tensor.shape[0], b = tensor.shape[1];
    if (a <= 0 || b <= 0 || a > kMostElements || b > kMostElements) continue;
    for (const int64_t numbers : {1, 4, 8}) {
      for (const auto& [n, k] :
           {std::pair(a, b * numbers), std::pair(b * numbers, a), std::pair(b, a * numbers)}) {
        if (n * k <= kMostElements) shapes.emplace(n, k);
      }
    }
  }
  return shapes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t config_end = std::min(input.find('\0'), size);
  const size_t header_begin = std::min(config_end + 1, size);
  const size_t header_end = std::min(input.find('\0', header_begin), size);
  const uint64_t header_bytes = header_end - header_begin;
  std::string file(sizeof header_bytes, '\0');
  std::memcpy(file.data(), &header_bytes, sizeof header_bytes);
  file += input.substr(header_begin, header_bytes);
  if (header_end < size) file += input.substr(header_end + 1);
  folder.write("config.json", input.substr(0, config_end));
  folder.write("model.safetensors", file);
  lets_invalid_input_through([&] {
    const auto checkpoint = shoal::Checkpoint::open(folder.path());
    const auto shapes = possible_shapes(*checkpoint);
    const std::vector<std::string> names = checkpoint->names();
    for (size_t i = 0; i < std::min(names.size(), kMostNames); ++i) {
      require(checkpoint->has(names[i]));
      if (!names[i].ends_with(".weight")) continue;
      const std::string module = names[i].substr(0, names[i].size() - std::strlen(".weight"));
      for (const auto& shape : shapes) {
        lets_invalid_input_through([&] {
          const auto [n, k] = shape;
          const auto weight = checkpoint->matrix(module, n, k);
          require(weight->n() == n && weight->k() == k);
          decode(*weight);
        });
      }
    }
  });
  return 0;
}
