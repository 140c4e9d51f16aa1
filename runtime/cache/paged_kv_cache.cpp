#include "runtime/cache/paged_kv_cache.h"

#include <fmt/format.h>

namespace shoal {
namespace {

constexpr int64_t kPlaneAlignment = 256;  // what Device::allocate gives, too

Buffer allocate_planes(Device& device, const KvCacheLayout& layout, int32_t num_pages) {
  const MemoryScope scope(device, MemoryUse::kKvCache);
  return device.allocate(layout.total_bytes(num_pages));
}

}  // namespace

DType parse_kv_cache_dtype(const std::string& value, DType automatic) {
  if (value == "auto") return automatic;
  if (value == "float32") return DType::kF32;
  if (value == "bfloat16") return DType::kBF16;
  if (value == "fp8" || value == "fp8_e4m3") return DType::kF8E4M3;
  if (value == "int8") return DType::kI8;
  throw_invalid("--kv-cache-dtype {}: use auto, float32, bfloat16, fp8 (fp8_e4m3) or int8", value);
}

KvCacheLayout::KvCacheLayout(const ModelConfig& config, int64_t kv_heads, int64_t layers, DType dtype,
                             int32_t page_size)
    : dtype_(dtype), layers_(layers), page_size_(page_size), latent_(config.is_mla()) {
  SHOAL_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF8E4M3 ||
                  dtype == DType::kI8,
              "KV cache of {}", dtype_name(dtype));
  const int64_t lora = config.kv_lora_rank, rope = config.qk_rope_head_dim;
  if (latent_ && has_scales(dtype)) {
    planes_ = {{Plane::kKeys, dtype, lora},
               {Plane::kKeyScale, DType::kF32, 1},
               {Plane::kRope, DType::kBF16, rope}};
  } else if (latent_) {
    planes_ = {{Plane::kKeys, dtype, lora + rope}};
  } else {
    const int64_t row = kv_heads * config.head_dim;
    planes_ = {{Plane::kKeys, dtype, row}};
    if (has_scales(dtype)) planes_.push_back({Plane::kKeyScale, DType::kF32, kv_heads});
    planes_.push_back({Plane::kValues, dtype, row});
    if (has_scales(dtype)) planes_.push_back({Plane::kValueScale, DType::kF32, kv_heads});
  }
}

int64_t KvCacheLayout::bytes_per_token_layer() const {
  int64_t bytes = 0;
  for (const Plane& plane : planes_) bytes += plane.slot_bytes();
  return bytes;
}

int64_t KvCacheLayout::plane_bytes(const Plane& plane, int64_t num_pages) const {
  const int64_t bytes = (num_pages + 1) * page_size_ * plane.slot_bytes();
  return (bytes + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
}

int64_t KvCacheLayout::total_bytes(int64_t num_pages) const {
  int64_t bytes = 0;
  for (const Plane& plane : planes_) bytes += plane_bytes(plane, num_pages);
  return layers_ * bytes;
}

std::string KvCacheLayout::describe() const {
  std::string text = fmt::format("{} layers of {} tokens a page:", layers_, page_size_);
  for (const Plane& plane : planes_) {
    text += fmt::format(" {}[{}]", dtype_name(plane.dtype), plane.width);
  }
  return text;
}

int64_t kv_bytes_per_token_layer(const ModelConfig& config, int64_t kv_heads, DType dtype) {
  return KvCacheLayout(config, kv_heads, 1, dtype, 1).bytes_per_token_layer();
}

PagedKvCache::PagedKvCache(Device& device, const KvCacheLayout& layout, int32_t num_pages)
    : layout_(layout), num_pages_(num_pages), memory_(allocate_planes(device, layout, num_pages)) {
  views_.page_size = layout.page_size();
  const int64_t slots = (int64_t{num_pages} + 1) * layout.page_size();
  auto* next = static_cast<std::byte*>(memory_.data());
  for (int64_t i = 0; i < layout.layers(); ++i) {
    KvCache::Layer& layer = views_.layers.emplace_back();
    for (const KvCacheLayout::Plane& plane : layout.planes()) {
      const Tensor view(next, plane.dtype, {slots, plane.width});
      switch (plane.kind) {
        case KvCacheLayout::Plane::kKeys: layer.k.data = view; break;
        case KvCacheLayout::Plane::kKeyScale: layer.k.scale = view; break;
        case KvCacheLayout::Plane::kRope: layer.k.rope = view; break;
        case KvCacheLayout::Plane::kValues: layer.v.data = view; break;
        case KvCacheLayout::Plane::kValueScale: layer.v.scale = view; break;
      }
      planes_.push_back(next);
      next += layout.plane_bytes(plane, num_pages);
    }
  }
}

std::vector<PagedKvCache::Piece> PagedKvCache::page(int32_t page) const {
  SHOAL_CHECK(page >= 0 && page <= num_pages_, "page {} of {}", page, num_pages_);
  std::vector<Piece> pieces;
  pieces.reserve(planes_.size());
  const size_t per_layer = layout_.planes().size();
  for (size_t i = 0; i < planes_.size(); ++i) {
    const int64_t bytes = layout_.page_size() * layout_.planes()[i % per_layer].slot_bytes();
    pieces.push_back({planes_[i] + page * bytes, bytes});
  }
  return pieces;
}

}  // namespace shoal
