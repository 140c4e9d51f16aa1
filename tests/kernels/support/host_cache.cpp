#include "tests/kernels/support/host_cache.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/kernels/support/reference.h"

namespace shoal::test {

HostCache HostCache::clone() const {
  const auto copy = [](const HostTensor& t) {
    return t.view().defined() ? t.clone() : HostTensor();
  };
  return {copy(data), copy(scale), copy(rope)};
}

std::vector<std::byte> HostCache::bytes() const {
  std::vector<std::byte> all = data.bytes();
  for (const HostTensor* more : {&scale, &rope}) {
    if (!more->view().defined()) continue;
    const std::vector<std::byte> bytes = more->bytes();
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

HostCache random_cache(Random& random, DType type, int64_t num_slots, int64_t n, int64_t groups,
                       int64_t rope) {
  HostCache cache;
  if (!has_scales(type)) {
    cache.data = random.tensor(type, {num_slots, n + rope});
    return cache;
  }
  cache.data = HostTensor(type, {num_slots, n});
  for_each_index(cache.data, [&](int64_t at) {
    auto code = static_cast<uint8_t>(random.below(256));
    if (type == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code = 0;
    cache.data.view().as<uint8_t>()[at] = code;
  });
  // The codes' root mean square is about 74 (int8) and 110 (e4m3).
  cache.scale = HostTensor(DType::kF32, {num_slots, groups});
  for_each_index(cache.scale, [&](int64_t at) {
    cache.scale.view().as<float>()[at] = 2e-3f + 1e-2f * std::abs(random.normal());
  });
  if (rope > 0) cache.rope = random.tensor(DType::kBF16, {num_slots, rope});
  return cache;
}

Group quantised(DType type, const std::vector<float>& values) {
  Group group;
  float most = 0;
  bool finite = true;
  for (const float v : values) {
    finite = finite && std::isfinite(v);
    most = std::max(most, std::abs(v));
  }
  const float limit = cache_limit(type);
  const bool zeros = finite && most < kCacheMinMax;
  group.scale = !finite ? std::numeric_limits<float>::quiet_NaN() : (zeros ? 0 : most / limit);
  const float factor = finite && !zeros ? limit / most : 0;
  for (const float v : values) {
    const float x = v * factor;
    group.codes.push_back(type == DType::kI8
                              ? static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x)))
                              : to_f8e4m3(x).bits);
  }
  return group;
}

}  // namespace shoal::test
