// The blocks of ggml's quantised types, taken apart. Pure.
//
// Every type is value = q * scale + min with an integer q and one scale (and min) per group of 16
// or 32; the scales of the K types are themselves products of a 4- or 6-bit number and a float16 of
// the block. q * scale is exact in float32 (5 bits of q at most beside 17 of the scale; Q6_K, which
// has no min, is rounded once), so one formula gives the bits of the gguf package whatever the
// order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/checkpoint/gguf.h"
#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

inline constexpr int64_t kMaxGgmlBlock = 256;

// One block, as integers and groups.
struct GgmlBlock {
  int8_t q[kMaxGgmlBlock];
  float scale[kMaxGgmlBlock / 16];
  float min[kMaxGgmlBlock / 16];
};

// As what a matrix of this type is held without loss: plain types as they are; Q4_0, Q4_1 and Q4_K
// as I4x2, the others as I8.
WeightForm ggml_form(const GgmlType& type);
inline bool is_plain(const GgmlType& type) { return type.block == 1; }

// REQUIRES: not plain. `min` is set for types that have one.
void take_apart(const GgmlType& type, const std::byte* block, GgmlBlock* out);

// `blocks` blocks as F32, the bits of gguf.quants.dequantize. Plain types too.
void dequantize(const GgmlType& type, const std::byte* data, int64_t blocks, float* out);

}  // namespace shoal
