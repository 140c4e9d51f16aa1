// Matrices of GGUF files as StoredWeights.
#pragma once

#include <memory>
#include <string>

#include "runtime/checkpoint/gguf.h"
#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

// Rows of a tensor, all of its columns. The model must outlive it. Thread-safe.
struct GgufRows {
  std::string name;  // of the tensor
  const InputFile* file = nullptr;
  const GgmlType* type = nullptr;
  uint64_t begin = 0;  // byte offset of row 0
  int64_t n = 0;
  int64_t k = 0;
  // llama.cpp's converter puts the two halves of each head of q and k together, pair by pair; > 0:
  // half the head, and row r of this matrix is where that left it.
  int64_t permuted_half = 0;

  std::string where() const;  // "FILE: tensor "NAME""
  uint64_t row_bytes() const { return static_cast<uint64_t>(k / type->block * type->block_bytes); }
  // The blocks that hold `cols`, row-major.
  void read_blocks(Range rows, Range cols, std::byte* out) const;
  // Rows x cols as F32, the bits of gguf.quants.dequantize. Throws InvalidInput for scales that are
  // not finite.
  void read_f32(Range rows, Range cols, float* out) const;
};

// As its type is held without loss (ggml_form). Numbers, scales and mins give the values of the
// gguf package bit for bit, except that the mins of Q4_1 and Q4_K move by 8 scales, since I4x2 is
// signed: where min + 8 * scale does not fit into 24 bits, that is rounded, once per group.
std::unique_ptr<StoredWeight> make_gguf_weight(GgufRows rows);
// As F32.
std::unique_ptr<StoredWeight> make_gguf_f32(GgufRows rows);

// DeepSeek's kv_b_proj [heads * (nope + v), kv_lora] as F32, from the two tensors that newer files
// split it into: k_b [heads * kv_lora, nope], transposed per head, and v_b [heads * v, kv_lora].
std::unique_ptr<StoredWeight> make_gguf_kv_b(GgufRows k_b, GgufRows v_b, int64_t heads);

}  // namespace shoal
