#include "server/quantize_command.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/backend.h"
#include "runtime/checkpoint/model_dir.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/quantization/calibration.h"
#include "runtime/quantization/calibration_text.h"
#include "runtime/quantization/quantize_model.h"
#include "runtime/text/tokenizer.h"
#include "server/progress_bar.h"

namespace shoal {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{1} << 30;
constexpr int kWindow = 512;

// The first tokens of the calibration text, cut from all over it.
std::vector<int32_t> calibration_tokens(const std::string& text, const std::string& model_dir,
                                        int most) {
  std::vector<int32_t> tokens = Tokenizer::FromCheckpoint(model_dir).encode(text);
  if (tokens.size() < 2) throw_invalid("--calibration: {} tokens are too few", tokens.size());
  if (tokens.size() <= static_cast<size_t>(most)) return tokens;
  const size_t windows = (tokens.size() + kWindow - 1) / kWindow;
  const size_t wanted = (static_cast<size_t>(most) + kWindow - 1) / kWindow;
  std::vector<int32_t> some;
  for (size_t i = 0; i < wanted; ++i) {
    const size_t begin = i * windows / wanted * kWindow;
    const size_t end = std::min(begin + kWindow, tokens.size());
    some.insert(some.end(), tokens.begin() + static_cast<int64_t>(begin),
                tokens.begin() + static_cast<int64_t>(end));
  }
  some.resize(std::min(some.size(), static_cast<size_t>(most)));
  return some;
}

}  // namespace

int run_quantize(const QuantizeCommandOptions& o) {
  QuantizeOptions options;
  options.scheme = parse_scheme("--scheme", o.scheme, /*for_file=*/true);
  options.input = resolve_model_dir(o.model, o.revision);
  options.output = o.output;
  options.max_shard_bytes = o.max_shard_bytes;
  options.threads = o.threads > 0 ? o.threads : machine_info().cores;
  std::unique_ptr<RankRuntime> rank;
  std::unique_ptr<Calibration> calibration;
  if (options.scheme.calibrated) {
    const bool own = o.calibration.empty();
    const std::string text =
        own ? std::string(calibration_text()) : read_small_file(o.calibration, kMaxTextBytes);
    options.calibration_id = fmt::format("{} {} {:016x}", o.calibration_tokens, text.size(),
                                         std::hash<std::string>{}(text));
    const std::vector<int32_t> tokens =
        calibration_tokens(text, options.input, o.calibration_tokens);
    rank = std::make_unique<RankRuntime>(
        BackendOptions{.device = o.device, .num_threads = options.threads});
    spdlog::info("calibrating with {} tokens of {}", tokens.size(),
                 own ? "Shoal's own documentation; a text like what the model will see (--calibration FILE) does "
                       "better"
                     : o.calibration);
    calibration = std::make_unique<Calibration>(*rank, options.input, tokens, kWindow,
                                                options.scheme, options.threads);
    options.calibrated = [&](const std::string& name, std::unique_ptr<StoredWeight> base) {
      return calibration->quantize(name, std::move(base));
    };
  }
  {
    ProgressBar bar("Quantising", "bytes");
    quantize_model(options, [&](uint64_t done, uint64_t total) { bar.update(done, total); });
  }
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options.output)) {
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  fmt::print("{}: {:.2f} GB of weights as {}\n", options.output, static_cast<double>(bytes) / 1e9,
             o.scheme);
  return 0;
}

}  // namespace shoal
