// Quantising while loading: a StoredWeight over another, and a Checkpoint over another.
#pragma once

#include <memory>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

// `base` (F32, F16, BF16 or F8E4M3) rounded to nearest. Groups and blocks are those of the unsharded
// matrix, and each is worked out from all of its values: a rank whose cut falls inside one reads the
// rest of it too, and has the numbers that one rank would have.
// REQUIRES: scheme.form(base->k()).
std::unique_ptr<StoredWeight> quantize_weight(std::unique_ptr<StoredWeight> base,
                                              const QuantizationScheme& scheme);

// `base` with the matrices of is_quantizable() quantised. Those that are FP8 already stay so under fp8.
// Throws InvalidInput when asked for one that holds integers already.
std::unique_ptr<Checkpoint> quantize_checkpoint(std::unique_ptr<Checkpoint> base,
                                                const QuantizationScheme& scheme);

// Checkpoint::open(path), quantised as `--quantization` says: "none" or a scheme.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path,
                                            const std::string& quantization);

}  // namespace shoal
