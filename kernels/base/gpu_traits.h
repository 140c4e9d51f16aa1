// GpuTraits: what the sizes of a GPU's scratch memory follow from, for plans made without one.
#pragma once

namespace shoal {

struct GpuTraits {
  int arch = 80;  // 10 * major + minor of the compute capability
  int num_sms = 108;
};

}  // namespace shoal
