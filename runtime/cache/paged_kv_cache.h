// PagedKvCache: the memory of one rank's KV cache, and KvCacheLayout: what a token costs in it. The one
// place where the format of the cache is written down: the plan, the loader and the runner ask here.
//
// A layer is a few planes, each an array of one row a slot (slot = page * page_size + offset), so that a
// page is a contiguous piece of every plane:
//   MLA    latent [kv_lora], its scale, rotary part [qk_rope]; as one row [kv_lora + qk_rope] when the
//          cache holds plain numbers
//   dense  keys [kv_heads * head_dim], their scales, values, their scales
// float32 and bfloat16 have no scales. fp8 (e4m3) and int8 have one F32 scale per token and KV head (MLA:
// per token); MLA's rotary part then stays bfloat16.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/device.h"
#include "runtime/model/model.h"

namespace shoal {

// --kv-cache-dtype: auto | float32 | bfloat16 | fp8 | fp8_e4m3 | int8. Throws InvalidInput.
DType parse_kv_cache_dtype(const std::string& value, DType automatic);

class KvCacheLayout {
 public:
  // `kv_heads`: of this rank, see local_kv_heads(); ignored for MLA. `layers`: the model's, and the
  // multi-token-prediction layer where it is loaded. dtype: F32 | BF16 | F8E4M3 | I8.
  KvCacheLayout(const ModelConfig& config, int64_t kv_heads, int64_t layers, DType dtype,
                int32_t page_size);

  DType dtype() const { return dtype_; }
  int64_t layers() const { return layers_; }
  int32_t page_size() const { return page_size_; }
  int64_t bytes_per_token_layer() const;
  int64_t bytes_per_token() const { return layers_ * bytes_per_token_layer(); }
  int64_t page_bytes() const { return page_size_ * bytes_per_token(); }
  // Of the whole cache with its page for padding: planes begin at multiples of 256 bytes.
  int64_t total_bytes(int64_t num_pages) const;
  // What two caches must share for pages of one to mean the same in the other:
  // "27 layers of 16 tokens a page: float8_e4m3[512] float32[1] bfloat16[64]".
  std::string describe() const;

  struct Plane {
    enum Kind { kKeys, kKeyScale, kRope, kValues, kValueScale } kind;
    DType dtype;
    int64_t width;  // elements of a slot
    int64_t slot_bytes() const { return width * dtype_size(dtype); }
  };
  // Of one layer, in the order in which they lie.
  const std::vector<Plane>& planes() const { return planes_; }
  int64_t plane_bytes(const Plane& plane, int64_t num_pages) const;  // with the padding page, aligned

 private:
  DType dtype_;
  int64_t layers_;
  int32_t page_size_;
  bool latent_;
  std::vector<Plane> planes_;
};

// Bytes of KV cache per token and layer on one rank with `kv_heads` KV heads (dense models).
int64_t kv_bytes_per_token_layer(const ModelConfig& config, int64_t kv_heads, DType dtype);

class PagedKvCache {
 public:
  // Allocates num_pages pages and one more, number num_pages, for padding. `device` must outlive it.
  PagedKvCache(Device& device, const KvCacheLayout& layout, int32_t num_pages);

  const KvCacheLayout& layout() const { return layout_; }
  const KvCache& views() const { return views_; }
  int32_t num_pages() const { return num_pages_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.bytes()); }

  // All bytes of a page: every layer's planes in order, the same sizes for every page, layout().page_bytes()
  // together. Device memory.
  struct Piece {
    std::byte* data;
    int64_t bytes;
  };
  std::vector<Piece> page(int32_t page) const;

 private:
  KvCacheLayout layout_;
  int32_t num_pages_;
  Buffer memory_;
  KvCache views_;
  std::vector<std::byte*> planes_;  // layer by layer
};

}  // namespace shoal
