// Reads the float32 arrays that NumPy wrote (format 1.0, C order), for golden data of our own.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace shoal {

struct NpyArray {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;  // [rows, columns]
};

inline NpyArray read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream buffer;
  buffer << file.rdbuf();
  const std::string bytes = buffer.str();
  if (bytes.size() < 10 || bytes.substr(1, 5) != "NUMPY") throw std::runtime_error(path + ": not a .npy");
  const size_t header = 10 + static_cast<unsigned char>(bytes[8]) + 256 * static_cast<unsigned char>(bytes[9]);
  const std::string text = bytes.substr(10, header - 10);
  if (text.find("'<f4'") == std::string::npos) throw std::runtime_error(path + ": not float32");
  NpyArray array;
  const size_t shape = text.find('(', text.find("shape"));
  if (std::sscanf(text.c_str() + shape, "(%ld, %ld)", &array.rows, &array.columns) != 2) {
    throw std::runtime_error(path + ": not two-dimensional");
  }
  array.values.resize(array.rows * array.columns);
  if (bytes.size() - header != array.values.size() * sizeof(float)) {
    throw std::runtime_error(path + ": wrong size");
  }
  std::copy(bytes.begin() + header, bytes.end(), reinterpret_cast<char*>(array.values.data()));
  return array;
}

}  // namespace shoal
