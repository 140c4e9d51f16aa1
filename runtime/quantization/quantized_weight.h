// Quantising while loading: a StoredWeight over another, and a Checkpoint over another.
#pragma once

#include <memory>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

// `base` (of any form) rounded to nearest. Groups and blocks are those of the unsharded
// matrix, and each is worked out from all of its values: a rank whose cut falls inside one reads the
// rest of it too, and has the numbers that one rank would have.
// REQUIRES: scheme.form(base->k()).
std::unique_ptr<StoredWeight> quantize_weight(std::unique_ptr<StoredWeight> base,
                                              const QuantizationScheme& scheme);

// `base` with the matrices of is_quantizable() quantised, but for those that stays_as_stored() keeps.
std::unique_ptr<Checkpoint> quantize_checkpoint(std::unique_ptr<Checkpoint> base,
                                                const QuantizationScheme& scheme);

// How many matrices of a quantize_checkpoint() have been handed out as they are stored, because they are
// quantised already; 0 of any other.
size_t matrices_kept(const Checkpoint& checkpoint);

// Checkpoint::open(path), quantised as `--quantization` says: "none" or a scheme.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path,
                                            const std::string& quantization);

}  // namespace shoal
