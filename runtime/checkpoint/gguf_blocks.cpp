#include "runtime/checkpoint/gguf_blocks.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using Id = GgmlType::Id;

uint8_t byte_at(const std::byte* data, int64_t i) { return static_cast<uint8_t>(data[i]); }

float half_at(const std::byte* data, int64_t i) {
  F16 half;
  std::memcpy(&half, data + i, sizeof(half));
  return to_float(half);
}

// 16 bytes: the low nibbles are elements 0 to 15, the high ones 16 to 31.
void nibbles32(const std::byte* data, int8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>(byte_at(data, i) & 15);
    q[16 + i] = static_cast<int8_t>(byte_at(data, i) >> 4);
  }
}

// Bit i of four bytes is the fifth bit of element i.
void fifth_bits32(const std::byte* data, int8_t* q) {
  uint32_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(q[i] | ((bits >> i & 1) << 4));
}

void add_to_all(int8_t* q, int count, int8_t term) {
  for (int i = 0; i < count; ++i) q[i] = static_cast<int8_t>(q[i] + term);
}

void q4_0(const std::byte* b, GgmlBlock* out) {  // f16 d, 16 bytes of nibbles
  out->scale[0] = half_at(b, 0);
  nibbles32(b + 2, out->q);
  add_to_all(out->q, 32, -8);
}

void q4_1(const std::byte* b, GgmlBlock* out) {  // f16 d, f16 min, 16 bytes of nibbles
  out->scale[0] = half_at(b, 0);
  out->min[0] = half_at(b, 2);
  nibbles32(b + 4, out->q);
}

void q5_0(const std::byte* b, GgmlBlock* out) {  // f16 d, 4 bytes of fifth bits, 16 of nibbles
  out->scale[0] = half_at(b, 0);
  nibbles32(b + 6, out->q);
  fifth_bits32(b + 2, out->q);
  add_to_all(out->q, 32, -16);
}

void q5_1(const std::byte* b, GgmlBlock* out) {  // f16 d, f16 min, 4 bytes, 16 bytes
  out->scale[0] = half_at(b, 0);
  out->min[0] = half_at(b, 2);
  nibbles32(b + 8, out->q);
  fifth_bits32(b + 4, out->q);
}

void q8_0(const std::byte* b, GgmlBlock* out) {  // f16 d, 32 signed bytes
  out->scale[0] = half_at(b, 0);
  std::memcpy(out->q, b + 2, 32);
}

void iq4_nl(const std::byte* b, GgmlBlock* out) {  // f16 d, 16 bytes of indices
  static constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
  out->scale[0] = half_at(b, 0);
  nibbles32(b + 2, out->q);
  for (int i = 0; i < 32; ++i) out->q[i] = kValues[out->q[i]];
}

// 2 bits of each of 256 elements in 64 bytes: 32 bytes hold 128, the lowest bits of all the
// first 32.
void two_bits256(const std::byte* data, int8_t* q) {
  for (int i = 0; i < 256; ++i) {
    const int byte = i / 128 * 32 + i % 32, shift = i % 128 / 32 * 2;
    q[i] = static_cast<int8_t>(byte_at(data, byte) >> shift & 3);
  }
}

void q2_k(const std::byte* b,
          GgmlBlock* out) {  // 16 bytes of (min, scale), 64 of q, f16 d, f16 dmin
  const float d = half_at(b, 80), dmin = half_at(b, 82);
  for (int g = 0; g < 16; ++g) {
    out->scale[g] = d * static_cast<float>(byte_at(b, g) & 15);
    out->min[g] = -(dmin * static_cast<float>(byte_at(b, g) >> 4));
  }
  two_bits256(b + 16, out->q);
}

void q3_k(const std::byte* b,
          GgmlBlock* out) {  // 32 bytes of third bits, 64 of q, 12 of scales, f16 d
  const std::byte* scales = b + 96;
  const float d = half_at(b, 108);
  for (int g = 0; g < 16; ++g) {  // low nibbles of groups 0..7, then 8..15; then two bits of each
    const int low = byte_at(scales, g % 8) >> (g / 8 * 4) & 15;
    const int high = byte_at(scales, 8 + g % 4) >> (g / 4 * 2) & 3;
    out->scale[g] = d * static_cast<float>((low | high << 4) - 32);
  }
  two_bits256(b + 32, out->q);
  for (int i = 0; i < 256; ++i) {  // a third bit of 0 takes 4 away
    if ((byte_at(b, i % 32) >> (i / 32) & 1) == 0) out->q[i] = static_cast<int8_t>(out->q[i] - 4);
  }
}

// 12 bytes: eight 6-bit scales and eight 6-bit mins. Of 0 to 3 the six low bits of a byte, of 4 to
// 7 a nibble and the two high bits of the byte of 0 to 3.
void six_bit_scales(const std::byte* b, float d, float dmin, GgmlBlock* out) {
  for (int g = 0; g < 8; ++g) {
    const uint8_t low = byte_at(b, g % 4), middle = byte_at(b, 4 + g % 4),
                  high = byte_at(b, 8 + g % 4);
    const int scale = g < 4 ? low & 63 : (high & 15) | (low >> 6) << 4;
    const int min = g < 4 ? middle & 63 : high >> 4 | (middle >> 6) << 4;
    out->scale[g] = d * static_cast<float>(scale);
    out->min[g] = -(dmin * static_cast<float>(min));
  }
}

// 128 bytes: 32 bytes hold 64 elements, the low nibbles first.
void nibbles256(const std::byte* data, int8_t* q) {
  for (int i = 0; i < 256; ++i) {
    q[i] = static_cast<int8_t>(byte_at(data, i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4) & 15);
  }
}

void q4_k(const std::byte* b,
          GgmlBlock* out) {  // f16 d, f16 dmin, 12 bytes of scales, 128 of nibbles
  six_bit_scales(b + 4, half_at(b, 0), half_at(b, 2), out);
  nibbles256(b + 16, out->q);
}

void q5_k(const std::byte* b,
          GgmlBlock* out) {  // f16 d, f16 dmin, 12 of scales, 32 of fifth bits, 128
  six_bit_scales(b + 4, half_at(b, 0), half_at(b, 2), out);
  nibbles256(b + 48, out->q);
  for (int i = 0; i < 256; ++i) {
    out->q[i] = static_cast<int8_t>(out->q[i] | (byte_at(b + 16, i % 32) >> (i / 32) & 1) << 4);
  }
}

void q6_k(const std::byte* b,
          GgmlBlock* out) {  // 128 of nibbles, 64 of high bits, 16 scales, f16 d
  const float d = half_at(b, 208);
  for (int g = 0; g < 16; ++g) {
    out->scale[g] = d * static_cast<float>(static_cast<int8_t>(byte_at(b, 192 + g)));
  }
  two_bits256(b + 128, out->q);
  for (int i = 0; i < 256; ++i) {  // 64 bytes of nibbles hold 128, the low ones the first 64
    const int nibble = byte_at(b, i / 128 * 64 + i % 64) >> (i % 128 / 64 * 4) & 15;
    out->q[i] = static_cast<int8_t>((nibble | out->q[i] << 4) - 32);
  }
}

}  // namespace

WeightForm ggml_form(const GgmlType& type) {
  switch (type.id) {
    case Id::kF32: return {DType::kF32};
    case Id::kF16: return {DType::kF16};
    case Id::kBF16: return {DType::kBF16};
    case Id::kQ4_0: return {DType::kI4x2, 1, 32, false};
    case Id::kQ4_1:
    case Id::kQ4_K: return {DType::kI4x2, 1, 32, true};
    case Id::kQ5_0:
    case Id::kQ8_0:
    case Id::kIQ4_NL: return {DType::kI8, 1, 32, false};
    case Id::kQ5_1:
    case Id::kQ5_K: return {DType::kI8, 1, 32, true};
    case Id::kQ2_K: return {DType::kI8, 1, 16, true};
    case Id::kQ3_K:
    case Id::kQ6_K: return {DType::kI8, 1, 16, false};
  }
  SHOAL_CHECK(false, "ggml type {}", type.name);
}

void take_apart(const GgmlType& type, const std::byte* block, GgmlBlock* out) {
  switch (type.id) {
    case Id::kQ4_0: return q4_0(block, out);
    case Id::kQ4_1: return q4_1(block, out);
    case Id::kQ5_0: return q5_0(block, out);
    case Id::kQ5_1: return q5_1(block, out);
    case Id::kQ8_0: return q8_0(block, out);
    case Id::kQ2_K: return q2_k(block, out);
    case Id::kQ3_K: return q3_k(block, out);
    case Id::kQ4_K: return q4_k(block, out);
    case Id::kQ5_K: return q5_k(block, out);
    case Id::kQ6_K: return q6_k(block, out);
    case Id::kIQ4_NL: return iq4_nl(block, out);
    case Id::kF32:
    case Id::kF16:
    case Id::kBF16: break;
  }
  SHOAL_CHECK(false, "{} has no blocks", type.name);
}

void dequantize(const GgmlType& type, const std::byte* data, int64_t blocks, float* out) {
  if (type.id == Id::kF32) {
    std::memcpy(out, data, static_cast<size_t>(blocks) * sizeof(float));
    return;
  }
  if (type.id == Id::kF16 || type.id == Id::kBF16) {
    for (int64_t i = 0; i < blocks; ++i) {
      BF16 bits;
      std::memcpy(&bits, data + 2 * i, sizeof(bits));
      out[i] = type.id == Id::kBF16 ? to_float(bits) : to_float(F16{bits.bits});
    }
    return;
  }
  const WeightForm form = ggml_form(type);
  GgmlBlock block;
  for (int64_t b = 0; b < blocks; ++b, data += type.block_bytes, out += type.block) {
    take_apart(type, data, &block);
    for (int64_t i = 0; i < type.block; ++i) {
      const int64_t group = i / form.block_cols;
      const float product = static_cast<float>(block.q[i]) * block.scale[group];
      out[i] = form.has_min ? product + block.min[group] : product;
    }
  }
}

}  // namespace shoal
