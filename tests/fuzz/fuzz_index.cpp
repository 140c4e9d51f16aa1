// model.safetensors.index.json: what is accepted names only plain files of the folder.
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/checkpoint/hf_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto files = shoal::parse_checkpoint_index(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    if (files.empty()) std::abort();
    for (const auto& [tensor, file] : files) {
      if (file.find('/') != file.npos || file.find('\0') != file.npos || file == ".." ||
          file.empty()) {
        std::abort();
      }
    }
  } catch (const shoal::InvalidInput&) {
  }
  return 0;
}
