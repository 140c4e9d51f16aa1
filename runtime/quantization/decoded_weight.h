// Weights with scales as plain bfloat16 ones, decoded while they are read.
#pragma once

#include <memory>

#include "runtime/checkpoint/checkpoint.h"

namespace shoal {

// `base` of any form, rounded to bfloat16.
std::unique_ptr<StoredWeight> decode_to_bf16(std::unique_ptr<StoredWeight> base);
// `base` with all matrices that have scales decoded so.
std::unique_ptr<Checkpoint> decode_checkpoint(std::unique_ptr<Checkpoint> base);

}  // namespace shoal
