// A cache on the host for the tests of write_cache, gather_cache and attention.
#pragma once

#include "tests/kernels/support/test_data.h"

namespace shoal::test {

struct HostCache {
  HostTensor data, scale, rope;  // see CacheTensor
  CacheTensor view() const { return {data, scale, rope}; }
  operator CacheTensor() const { return view(); }  // NOLINT(google-explicit-constructor)
  HostCache clone() const;
  std::vector<std::byte> bytes() const;
};

// Rows of n + rope elements whose values are about normal. F8E4M3 and I8: `groups` scales a row and every
// code, but the NaNs of FP8.
HostCache random_cache(Random& random, DType type, int64_t num_slots, int64_t n, int64_t groups = 1,
                       int64_t rope = 0);

// What write_cache makes of a group of values: codes and scale, in float as the kernels.
struct Group {
  std::vector<uint8_t> codes;
  float scale = 0;
};
Group quantised(DType type, const std::vector<float>& values);

}  // namespace shoal::test
