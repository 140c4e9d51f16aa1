#include "kernels/base/workspace.h"

#include <algorithm>

namespace shoal {
namespace {
constexpr size_t kAlignment = 256;  // what cuBLASLt wants of a workspace, and four cache lines
}

Workspace::Workspace(Device& device, size_t chunk_bytes, MemoryUse use)
    : device_(device), chunk_bytes_(chunk_bytes), use_(use) {}

void Workspace::reserve(size_t bytes) {
  SHOAL_CHECK(chunk_ == 0 && used_ == 0, "{} bytes reserved in a workspace that is in use", bytes);
  if (chunks_.size() == 1 && chunks_.front().bytes() == bytes) return;
  high_water_ = 0;
  chunks_.clear();  // before the new one: the two need not fit together
  const MemoryScope scope(device_, use_);
  if (bytes > 0) chunks_.push_back(device_.allocate(bytes));
}

Tensor Workspace::tensor(DType dtype, std::initializer_list<int64_t> dims) {
  Tensor view(nullptr, dtype, dims);
  const size_t bytes =
      std::max<size_t>((view.num_bytes() + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].bytes()) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    const MemoryScope scope(device_, use_);
    chunks_.push_back(device_.allocate(std::max(bytes, chunk_bytes_)));
    used_ = 0;
  }
  view.data = static_cast<std::byte*>(chunks_[chunk_].data()) + used_;
  used_ += bytes;
  size_t total = used_;
  for (size_t i = 0; i < chunk_; ++i) total += chunks_[i].bytes();
  high_water_ = std::max(high_water_, total);
  return view;
}

Tensor Workspace::from_host(DType dtype, const void* host, std::initializer_list<int64_t> dims) {
  Tensor view = tensor(dtype, dims);
  if (view.num_bytes() > 0) device_.copy_to_device(view.data, host, view.num_bytes());
  return view;
}

Workspace& Workspace::aside() {
  if (!aside_) aside_ = std::make_unique<Workspace>(device_, chunk_bytes_, use_);
  return *aside_;
}

void Workspace::reset() {
  chunk_ = 0;
  used_ = 0;
}

}  // namespace shoal
