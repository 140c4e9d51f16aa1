// DummyCheckpoint: `--load-format dummy`: a checkpoint of which only the config.json is there. Its
// values are made up, each from the tensor's name and its own place alone: every layout and every
// run has the same model. What it says means nothing; shapes, forms, memory and speed are the true
// ones.
#pragma once

#include <memory>
#include <string>

#include "runtime/checkpoint/checkpoint.h"

namespace shoal {

// `path`: a folder with a config.json (or a GGUF file, of which only the metadata are read).
// Matrices are held as --quantization says, with "none" as its quantization_config says, else in
// torch_dtype. Throws InvalidInput.
std::unique_ptr<Checkpoint> open_dummy_checkpoint(const std::string& path,
                                                  const std::string& quantization);

// `--load-format auto|dummy`: open_checkpoint() or open_dummy_checkpoint().
std::unique_ptr<Checkpoint> open_checkpoint_as(const std::string& load_format,
                                               const std::string& path,
                                               const std::string& quantization);

}  // namespace shoal
