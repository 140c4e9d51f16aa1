#include "server/logits_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime/checkpoint/model_dir.h"
#include "runtime/engine/loader.h"
#include "server/launcher.h"
#include "server/single_sequence.h"

namespace shoal {
namespace {

std::vector<int32_t> parse_tokens(const std::string& text) {
  std::vector<int32_t> tokens;
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end) {
    int32_t value = 0;
    const auto [next, error] = std::from_chars(p, end, value);
    if (error != std::errc() || (next < end && *next != ',')) {
      throw_invalid("--tokens {}: expected token ids as 1,2,3", text);
    }
    tokens.push_back(value);
    p = next < end ? next + 1 : next;
  }
  if (tokens.empty()) throw_invalid("--tokens: give at least one token id");
  return tokens;
}

// NumPy's format 1.0, little endian, C order: numpy.lib.format.
class NpyWriter {
 public:
  NpyWriter(const std::string& path, int64_t rows, int64_t columns)
      : path_(path), file_(std::fopen(path.c_str(), "wb"), &std::fclose) {
    if (!file_) throw_invalid("--out {}: cannot be written", path);
    std::string header = fmt::format(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
    constexpr size_t kPreamble = 10, kAlign = 64;  // the data begins at a multiple of 64
    header.resize((kPreamble + header.size() + 1 + kAlign - 1) / kAlign * kAlign - kPreamble - 1, ' ');
    header += '\n';
    const unsigned char preamble[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0,
                                      static_cast<unsigned char>(header.size() & 255),
                                      static_cast<unsigned char>(header.size() >> 8)};
    write(preamble, sizeof(preamble));
    write(header.data(), header.size());
  }
  void append(std::span<const float> values) { write(values.data(), values.size_bytes()); }
  void close() {
    if (std::fclose(file_.release()) != 0) throw_invalid("--out {}: writing failed", path_);
  }

 private:
  void write(const void* data, size_t bytes) {
    if (std::fwrite(data, 1, bytes, file_.get()) != bytes) {
      throw_invalid("--out {}: writing {} bytes failed", path_, bytes);
    }
  }
  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

int run_logits(const LogitsOptions& options) {
  const EngineOptions& e = options.engine;
  if (e.tensor_parallel_size > 1 && !started_by_mpirun()) {
    return run_self_under_mpirun(e.tensor_parallel_size);
  }
  const std::vector<int32_t> tokens = parse_tokens(options.tokens);
  if (options.greedy < 0) throw_invalid("--greedy {}: use 0 or more", options.greedy);
  if (options.chunk < 0) throw_invalid("--chunk {}: use 0 or more", options.chunk);
  const auto length = static_cast<int64_t>(tokens.size()) + options.greedy;

  RankRuntime rank({.device = e.device, .num_threads = e.threads_per_rank});
  LoadOptions load;
  load.model_dir = resolve_model_dir(e.model, e.revision);
  load.load_format = e.load_format;
  load.dtype = e.dtype;
  load.kv_cache_dtype = e.kv_cache_dtype;
  load.gpu_memory_limit = e.gpu_memory_limit;
  load.expert_offload = e.expert_offload;
  load.num_gpu_experts = e.num_gpu_experts;
  load.host_memory = e.host_memory;
  load.quantization = e.quantization;
  load.dp_attention = e.dp_attention;
  load.load_mtp = !options.mtp_out.empty();
  load.page_size = e.page_size;
  load.max_model_len = length;
  load.max_num_seqs = 1;
  load.kv_cache_tokens = length;
  load.max_num_batched_tokens = static_cast<int64_t>(tokens.size());
  load.all_logits = true;
  load.warm_up = false;
  load.enforce_eager = true;  // one sequence, once: recording would cost more than it gains
  const std::unique_ptr<LoadedModel> model = load_model(rank, load);
  const int64_t vocab = model->config.vocab_size;
  for (int32_t token : tokens) {
    if (token < 0 || token >= vocab) {
      throw_invalid("--tokens: {} is not a token id; the vocabulary has {}", token, vocab);
    }
  }

  if (load.load_mtp) {
    if (model->model->mtp() == nullptr) {
      throw_invalid("--mtp-out: the model has no multi-token-prediction layer");
    }
    if (options.greedy > 0 || options.chunk > 0 || tokens.size() < 2) {
      throw_invalid("--mtp-out: give at least two tokens, and neither --greedy nor --chunk");
    }
  }

  SingleSequence sequence(*model, parse_exchange(e.expert_exchange));
  std::unique_ptr<NpyWriter> out;
  if (rank.rank() == 0 && !options.out.empty()) {
    out = std::make_unique<NpyWriter>(options.out, static_cast<int64_t>(tokens.size()), vocab);
  }
  const size_t chunk = options.chunk > 0 ? options.chunk : tokens.size();
  int32_t next = 0;  // rank 0's choice, which the others are told
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const auto piece = std::span(tokens).subspan(begin, std::min(chunk, tokens.size() - begin));
    const std::span<const float> logits = sequence.run(piece, options.absorbed, /*all_logits=*/true);
    if (out) out->append(logits);
    if (rank.rank() == 0) next = argmax(logits.last(vocab));
  }
  if (out) out->close();
  if (!options.mtp_out.empty()) {
    const std::span<const float> logits = sequence.run_mtp(std::span(tokens).subspan(1));
    if (rank.rank() == 0) {
      NpyWriter mtp_out(options.mtp_out, static_cast<int64_t>(tokens.size()) - 1, vocab);
      mtp_out.append(logits);
      mtp_out.close();
    }
  }

  std::vector<int32_t> greedy;
  for (int i = 0; i < options.greedy; ++i) {
    std::vector<std::byte> message(sizeof(next));
    std::memcpy(message.data(), &next, sizeof(next));
    rank.group().broadcast(message);
    std::memcpy(&next, message.data(), sizeof(next));
    greedy.push_back(next);
    if (i + 1 == options.greedy) break;
    const std::span<const float> logits = sequence.run(std::span(&next, 1), /*absorbed=*/true, false);
    if (rank.rank() == 0) next = argmax(logits);
  }
  if (rank.rank() == 0 && options.greedy > 0) fmt::print("{}\n", fmt::join(greedy, ","));
  rank.group().barrier();
  return 0;
}

}  // namespace shoal
