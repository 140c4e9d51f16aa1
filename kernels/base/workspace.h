// Workspace: where a step's activations live. A bump allocator over chunks of device memory that are
// kept from step to step, so that after the largest step has been seen nothing is allocated again.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "kernels/base/device.h"
#include "kernels/base/tensor.h"

namespace shoal {

class Workspace {
 public:
  explicit Workspace(Device& device, size_t chunk_bytes = size_t{64} << 20,
                     MemoryUse use = MemoryUse::kWorkspace);

  // From now on everything lies in one piece of `bytes`, made here: what is planned then never grows later,
  // and loses nothing at the ends of chunks. REQUIRES: nothing taken is in use.
  void reserve(size_t bytes);

  // Uninitialised, 256-byte aligned, valid until the enclosing Scope (or reset) ends.
  Tensor tensor(DType dtype, std::initializer_list<int64_t> dims);
  // Copies host values into a fresh tensor of one dimension.
  Tensor from_host(DType dtype, const void* host, std::initializer_list<int64_t> dims);
  void reset();
  size_t high_water_bytes() const { return high_water_; }
  Device& device() const { return device_; }

  // A workspace of its own memory, made when first asked for: for what has to outlive the scopes of
  // this one. Its user resets it.
  Workspace& aside();

  // Gives back everything that was taken since its construction.
  class Scope {
   public:
    explicit Scope(Workspace& workspace)
        : workspace_(workspace), chunk_(workspace.chunk_), used_(workspace.used_) {}
    ~Scope() {
      workspace_.chunk_ = chunk_;
      workspace_.used_ = used_;
    }
    Scope(const Scope&) = delete;

   private:
    Workspace& workspace_;
    size_t chunk_, used_;
  };

 private:
  Device& device_;
  size_t chunk_bytes_;
  MemoryUse use_;
  std::vector<Buffer> chunks_;
  std::unique_ptr<Workspace> aside_;
  size_t chunk_ = 0;  // index of the chunk in use
  size_t used_ = 0;   // bytes used of it
  size_t high_water_ = 0;
};

}  // namespace shoal
