// A GGUF file: container, config, tokenizer, and the weights' blocks. What is accepted has to keep
// the promises that the readers rely on. (A chat template is a string of it: fuzz_chat_template.)
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_checkpoint.h"
#include "runtime/checkpoint/gguf_weight.h"
#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/model/model_config.h"
#include "runtime/text/tokenizer.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

// A file in memory that holds the input, and its path.
class File {
 public:
  File(const uint8_t* data, size_t size) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    require(fd_ >= 0 && write(fd_, data, size) == static_cast<ssize_t>(size));
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }
  ~File() { close(fd_); }
  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

template <typename Body>
void lets_invalid_input_through(const Body& body) {
  try {
    body();
  } catch (const shoal::InvalidInput&) {
  }
}

void check_header(const shoal::GgufHeader& header, size_t size) {
  for (const auto& [name, tensor] : header.tensors) {
    require(tensor.begin <= tensor.end && tensor.end <= size);
    const int64_t elements = tensor.num_elements();
    require(elements > 0 && tensor.shape.back() % tensor.type->block == 0);
    require(static_cast<uint64_t>(elements / tensor.type->block * tensor.type->block_bytes) ==
            tensor.end - tensor.begin);
  }
}

// Reads the first rows of a weight.
void read_some(const shoal::StoredWeight& weight) {
  const shoal::WeightForm form = weight.form();
  const shoal::Range rows{0, std::min<int64_t>(weight.n(), 4)}, cols{0, weight.k()};
  require(weight.stored_bytes(rows, cols) > 0);
  std::vector<std::byte> numbers(rows.size() * form.row_bytes(cols.size()));
  const auto blocks =
      form.block_cols > 0 ? rows.size() * shoal::blocks_touched(cols, form.block_cols).size() : 0;
  std::vector<float> scale(blocks), min(blocks);
  weight.read(rows, cols, numbers.data(), scale.data(), min.data());
}

// Each tensor as a matrix, whatever its name.
void read_tensors(const std::string& path) {
  const auto model = shoal::GgufModel::open(path);
  for (const auto& tensor : model->tensors()) {
    const shoal::GgufTensor& info = *tensor.second.info;
    lets_invalid_input_through([&] {
      read_some(*shoal::make_gguf_weight({.name = tensor.first,
                                          .file = tensor.second.file,
                                          .type = info.type,
                                          .begin = info.begin,
                                          .n = info.num_elements() / info.shape.back(),
                                          .k = info.shape.back()}));
    });
  }
}

// Each weight of the plan.
void read_weights(const std::string& path) {
  const shoal::ModelConfig config = shoal::read_model_config(path);
  require(config.num_attention_heads > 0 && config.hidden_size > 0 && config.vocab_size > 0);
  const shoal::GgufCheckpoint checkpoint(path);
  lets_invalid_input_through([&] { shoal::check_all_known(checkpoint, config); });
  // A hostile config may ask for millions of tensors, which a file of some KB cannot hold.
  constexpr int64_t kMostTensors = 4096;
  if (config.num_hidden_layers * (config.n_routed_experts + 1) > kMostTensors) return;
  for (const shoal::PlannedTensor& tensor : shoal::tensor_plan(config)) {
    lets_invalid_input_through([&] { read_some(*shoal::planned_weight(checkpoint, tensor)); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = [&](uint64_t begin, uint64_t end, void* out) {
    require(begin <= end && end <= size);
    std::copy(data + begin, data + end, static_cast<uint8_t*>(out));
  };
  lets_invalid_input_through([&] {
    check_header(shoal::parse_gguf_header(bytes, size, "fuzz"), size);
    const File file(data, size);
    lets_invalid_input_through([&] { read_tensors(file.path()); });
    lets_invalid_input_through([&] { read_weights(file.path()); });
    lets_invalid_input_through([&] {
      const auto tokenizer = shoal::Tokenizer::FromCheckpoint(file.path());
      for (const int32_t id : tokenizer.encode("it's  12345 <s>\xE6\x97\xA5\xCC\x81\n\n")) {
        require(id >= 0 && id < tokenizer.vocab_size());
      }
    });
  });
  return 0;
}
