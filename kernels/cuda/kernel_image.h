// Whether this binary's kernels run on a GPU, asked before the first of them is launched.
#pragma once

#include <cuda_runtime_api.h>

namespace shoal {

// What keeps the kernels from the current device; cudaSuccess: nothing. Leaves no last error
// behind.
cudaError_t find_kernel_image();

}  // namespace shoal
