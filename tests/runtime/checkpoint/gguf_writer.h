// Writes GGUF files for tests, well-formed or not: what is given, in order.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace shoal::test {

class GgufWriter {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; a key general.alignment is separate

  GgufWriter& u32(const std::string& key, uint32_t value) { return scalar(key, 4, value); }
  GgufWriter& i32(const std::string& key, int32_t value) { return scalar(key, 5, value); }
  GgufWriter& f32(const std::string& key, float value) { return scalar(key, 6, value); }
  GgufWriter& u64(const std::string& key, uint64_t value) { return scalar(key, 10, value); }
  GgufWriter& flag(const std::string& key, bool value) { return scalar<uint8_t>(key, 7, value); }
  GgufWriter& text(const std::string& key, std::string_view value) {
    return raw_key(key, 8, sized(value));
  }
  GgufWriter& texts(const std::string& key, const std::vector<std::string>& values) {
    std::string bytes = number<uint32_t>(8) + number<uint64_t>(values.size());
    for (const std::string& value : values) bytes += sized(value);
    return raw_key(key, 9, bytes);
  }
  GgufWriter& i32s(const std::string& key, const std::vector<int32_t>& values) {
    std::string bytes = number<uint32_t>(5) + number<uint64_t>(values.size());
    for (const int32_t value : values) bytes += number(value);
    return raw_key(key, 9, bytes);
  }
  GgufWriter& raw_key(const std::string& key, uint32_t type, const std::string& value) {
    keys_ += sized(key) + number(type) + value;
    ++num_keys_;
    return *this;
  }

  // `dims`: the fastest first, as in the file.
  GgufWriter& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                     const std::string& data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    tensor_at(name, dims, type, data_.size());
    data_ += data;
    return *this;
  }
  GgufWriter& f32_tensor(const std::string& name, const std::vector<uint64_t>& dims,
                         const std::vector<float>& values) {
    std::string data(values.size() * 4, '\0');
    std::memcpy(data.data(), values.data(), data.size());
    return tensor(name, dims, 0, data);
  }
  GgufWriter& tensor_at(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                        uint64_t offset) {
    tensors_ += sized(name) + number(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) tensors_ += number(dim);
    tensors_ += number(type) + number(offset);
    ++num_tensors_;
    return *this;
  }

  std::string bytes() const {
    std::string bytes =
        "GGUF" + number(version) + number(num_tensors_) + number(num_keys_) + keys_ + tensors_;
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return bytes + data_;
  }

  template <typename T>
  static std::string number(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }
  static std::string sized(std::string_view text) {
    return number<uint64_t>(text.size()) + std::string(text);
  }

 private:
  template <typename T>
  GgufWriter& scalar(const std::string& key, uint32_t type, T value) {
    return raw_key(key, type, number(value));
  }

  std::string keys_, tensors_, data_;
  uint64_t num_keys_ = 0, num_tensors_ = 0;
};

}  // namespace shoal::test
