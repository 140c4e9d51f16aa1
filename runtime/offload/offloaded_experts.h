// OffloadedExperts: one layer of an ExpertStore.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/offload/expert_store.h"

namespace shoal {

class OffloadedExperts final : public RoutedExperts {
 public:
  OffloadedExperts(ExpertStore& store, std::string name, const ExpertImage& image,
                   const ExpertCounts& counts);
  ~OffloadedExperts() override;

  // Brings the ids to the host, once.
  void forward(ExecContext& ctx, const Tensor& x, const Tensor& expert_ids, const Tensor& weights,
               const Tensor& out) override;

  // Changes two homes if it is worth it; returns the bytes that this moves.
  uint64_t move_one();
  void age();     // of the heat, one step
  void forget();  // all heat

 private:
  struct Expert {
    ExpertHome home = ExpertHome::kDisk;
    uint64_t at = 0;  // device: number of the slot; host: offset in host_memory_
    float heat = 0;   // steps that used it, older ones less
  };
  // The rows of one expert that is not on the device.
  struct Guest {
    int64_t expert = 0;
    int64_t begin = 0, end = 0;  // sorted rows
  };
  // Rows sorted by where they are multiplied: experts of device slots 0, 1, .., then streamed ones,
  // then those of the CPU.
  struct Arrangement {
    std::vector<int32_t> numbers;  // source rows, slots of pairs, offsets: one upload
    int64_t rows = 0, on_device = 0;
    std::vector<Guest> streamed, on_cpu;
  };
  Arrangement arrange(const std::vector<int32_t>& ids, int64_t top_k);
  // Multiplies guests by the CPU; the result replaces their rows of `sorted`.
  void multiply_on_cpu(ExecContext& ctx, const Arrangement& rows, const std::byte* x,
                       const Tensor& sorted);
  void run_on_host(std::span<const Guest> guests, int64_t first_row,
                   std::span<std::byte* const> images);
  void read_expert(int64_t expert, std::byte* image);
  void read_again(int64_t expert, std::byte* image);  // in a step
  std::byte* host_at(uint64_t offset) const { return host_memory_.data() + skew_ + offset; }
  std::byte* device_slot(uint64_t slot) const {
    return static_cast<std::byte*>(device_memory_.data()) + slot * image_.bytes();
  }
  void move_up(Expert& hot, int64_t hot_expert, Expert& cold);

  ExpertStore& store_;
  const std::string name_;
  const ExpertImage image_;
  const int64_t min_stream_rows_;
  std::vector<Expert> experts_;  // of this rank
  Buffer device_memory_;         // of as many images as live on the device
  std::array<std::vector<Weight>, ExpertImage::kParts> device_weights_;  // by slot
  std::array<std::array<std::vector<Weight>, ExpertImage::kParts>, 2>
      streamed_weights_;    // by ring slot
  HostBuffer host_memory_;  // of the images on the host, and one more to change places by
  uint64_t skew_ = 0;       // to the first aligned byte of it
  uint64_t spare_ = 0;      // offset of the one that is free
  std::shared_ptr<DeviceEvent> moved_;   // of the last move; null when it is known to have ended
  std::shared_ptr<DeviceEvent> copied_;  // of the last streamed expert
  std::vector<float> host_x_, host_gate_, host_up_;  // activations of the CPU's rows
};

}  // namespace shoal
