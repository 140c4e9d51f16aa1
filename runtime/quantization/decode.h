// Decoding of stored weights to float32 on the host, in any form.
#pragma once

#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

// rows x cols of `weight`, row-major: number * scale + min. Thread-safe.
void decode_weight(const StoredWeight& weight, Range rows, Range cols, float* out);

}  // namespace shoal
