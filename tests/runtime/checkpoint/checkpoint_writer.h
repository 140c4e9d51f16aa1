// Writes checkpoints for tests: well-formed ones from values, and any bytes as a header.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"

namespace shoal::test {

// A folder of its own, gone at the end.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "shoal-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  std::string path(const std::string& name = "") const {
    return name.empty() ? path_ : path_ + "/" + name;
  }
  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories(std::filesystem::path(path(name)).parent_path());
    std::ofstream file(path(name), std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::string path_;
};

// header text + data -> the bytes of a safetensors file.
inline std::string safetensors_file(const std::string& header, const std::string& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
  return bytes + header + data;
}

struct StoredTensor {
  std::string name;
  std::string type;  // "F32", ...
  std::vector<int64_t> shape;
  std::string data;
};

inline std::string safetensors_file(const std::vector<StoredTensor>& tensors) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}", data;
  for (const StoredTensor& t : tensors) {
    header +=
        fmt::format(",\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", t.name,
                    t.type, fmt::join(t.shape, ","), data.size(), data.size() + t.data.size());
    data += t.data;
  }
  header += "}";
  while (header.size() % 8 != 0) header += ' ';
  return safetensors_file(header, data);
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Values that F32, BF16 and F16 all hold exactly: integers in [-128, 128).
inline std::vector<float> small_integers(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 256) - 128);
  return values;
}

inline StoredTensor stored_f32(const std::string& name, std::vector<int64_t> shape,
                               const std::vector<float>& values) {
  return {name, "F32", std::move(shape), bytes_of(values)};
}
inline StoredTensor stored_bf16(const std::string& name, std::vector<int64_t> shape,
                                const std::vector<float>& values) {
  std::vector<BF16> rounded;
  for (const float v : values) rounded.push_back(to_bf16(v));
  return {name, "BF16", std::move(shape), bytes_of(rounded)};
}
inline StoredTensor stored_f16(const std::string& name, std::vector<int64_t> shape,
                               const std::vector<float>& values) {
  std::vector<F16> rounded;
  for (const float v : values) rounded.push_back(to_f16(v));
  return {name, "F16", std::move(shape), bytes_of(rounded)};
}

}  // namespace shoal::test
