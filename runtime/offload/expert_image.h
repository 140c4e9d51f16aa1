// ExpertImage: how one routed expert lies in memory when it may live in several places: its three
// matrices with their scales, one behind the other, in one piece that is copied as a whole. The
// same bytes on the device and on the host.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

class ExpertImage {
 public:
  enum Part { kGate, kUp, kDown };
  static constexpr int kParts = 3;
  // What the checkpoint calls them, behind the expert's name.
  static constexpr const char* kNames[kParts] = {"gate_proj", "up_proj", "down_proj"};
  static constexpr uint64_t kAlignment = 256;  // of images, as of allocations

  // forms: of the matrices as they are held. gate and up are [inner, hidden], down is [hidden,
  // inner].
  ExpertImage(std::array<WeightForm, kParts> forms, int64_t hidden, int64_t inner);

  uint64_t bytes() const { return bytes_; }                // of an image, a multiple of kAlignment
  uint64_t weight_bytes() const { return weight_bytes_; }  // of the weights in it
  int64_t n(int part) const { return part == kDown ? hidden_ : inner_; }
  int64_t k(int part) const { return part == kDown ? inner_ : hidden_; }
  const WeightForm& form(int part) const { return forms_[part]; }
  // The matrix in the image at `memory`.
  Weight weight(int part, std::byte* memory) const;

 private:
  struct Place {
    uint64_t numbers = 0, scale = 0, min = 0;
  };
  std::array<WeightForm, kParts> forms_;
  std::array<Place, kParts> places_;
  int64_t hidden_, inner_;
  uint64_t bytes_ = 0, weight_bytes_ = 0;
};

}  // namespace shoal
