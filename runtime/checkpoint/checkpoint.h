// Checkpoint: the weights of a model, whatever the format of their files. Opening reads headers only.
// Immutable once open: any thread may read. Names are Hugging Face's ("model.norm.weight"), and a
// matrix has one name however many tensors of the file it is packed into.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

class Checkpoint {
 public:
  // A folder in Hugging Face's layout (HfCheckpoint) or a GGUF file (GgufCheckpoint). Throws InvalidInput naming file and tensor.
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual bool has(const std::string& name) const = 0;
  // All of them, sorted. A part without its weight (a scale of what has none) is a name of its own.
  virtual std::vector<std::string> names() const = 0;

  // The matrix called `name`.weight. Throws InvalidInput when it is missing, has another shape than
  // [n, k], or parts that contradict each other. The Checkpoint must outlive it.
  virtual std::unique_ptr<StoredWeight> matrix(const std::string& name, int64_t n,
                                               int64_t k) const = 0;
  // The vector called exactly `name`, as a matrix [n, 1] of F32, F16 or BF16.
  virtual std::unique_ptr<StoredWeight> vector(const std::string& name, int64_t n) const = 0;

  // One tensor as it lies in a file, for people to look at.
  struct FileTensor {
    std::string name;  // the file's own
    std::string type;
    std::vector<int64_t> shape;
    uint64_t bytes = 0;
    std::string file;  // without its folder
  };
  virtual std::vector<FileTensor> file_tensors() const = 0;  // sorted by name
  // "FP8 in blocks of 128 x 128", or "" where every tensor is what its type says.
  virtual std::string quantization() const = 0;

  virtual const std::string& path() const = 0;
  virtual size_t num_files() const = 0;
  virtual uint64_t total_bytes() const = 0;  // of all tensors
};

}  // namespace shoal
