// ModelOutput: a folder that a model is written into, shard by shard, so that it can go on where it was
// stopped and is no model before it is whole: config.json comes last.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "runtime/quantization/compressed_writer.h"

namespace shoal {

// Not thread-safe. Failures are InvalidInput naming the file: no permission, no space.
class ModelOutput {
 public:
  // Makes the folder, or takes one that is empty or was begun with the same `recipe` (all that decides
  // the bytes). Throws InvalidInput for any other, and for `input` itself.
  ModelOutput(const std::string& dir, const std::string& input, const std::string& recipe);

  // Whether this shard is here already, whole: as long as its header says and with the bytes that were
  // written then.
  bool finished(const std::string& name, const std::vector<OutputTensor>& tensors) const;
  // Writes a shard: `fill` gives the bytes of all tensors, in order, to the function it is handed.
  // What an interrupted write left is replaced; what this one leaves when it fails is removed.
  using Write = std::function<void(std::span<const std::byte>)>;
  void write_shard(const std::string& name, const std::vector<OutputTensor>& tensors,
                   const std::function<void(const Write&)>& fill);
  void write_text(const std::string& name, const std::string& text);
  void copy_file(const std::string& from, const std::string& name);
  // REQUIRES: everything else is written. Writes config.json; the folder is a model now.
  void finish(const std::string& config_json);

 private:
  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  void save_journal() const;

  std::string dir_, recipe_;
  std::map<std::string, uint64_t> finished_;  // shard -> hash of its bytes
};

}  // namespace shoal
