// shoal_bench_kernels [--threads N] [--repeats R] [--only TEXT] [--json FILE]
//                    [--clock wall|thread]
// Measures what the machine allows, then each verb that dominates a step at the shapes of real
// models, and prints the share of the limit that it reaches. Run it on a quiet machine.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/bench/limits.h"

namespace shoal::bench {
namespace {

// Weights are taken in turn from a pool of this size, so that each call finds them in memory and
// not in a cache, as a step does.
constexpr int64_t kColdBytes = int64_t{256} << 20;

struct Options {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int repeats = 7;
  std::string only;
  std::string json;
  Clock clock = Clock::kWall;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), device_(make_cpu_device()), ops_(make_cpu_ops(options.threads)) {
    ThreadPool pool(options.threads);
    bandwidth_ = read_bandwidth(pool, options.repeats, options.clock);
    peak_ = fma_peak(pool, options.repeats, options.clock);
    fmt::print("{} thread(s), {}: {:.1f} GB/s read bandwidth, {:.1f} GFLOP/s FP32 FMA\n\n",
               options.threads, cpu_target_name(), bandwidth_ / 1e9, peak_ / 1e9);
    fmt::print("{:<44} {:>10} {:>8} {:>10} {:>9}\n", "verb", "us", "GB/s", "GFLOP/s", "of limit");
  }

  void linear(DType type, int64_t m, int64_t n, int64_t k) {
    if (!wanted(fmt::format("linear {} M={}", dtype_name(type), m))) return;
    const int64_t bytes = n * k * dtype_size(type);
    std::vector<Weight> weights;
    for (int64_t i = 0; i < std::max<int64_t>(1, kColdBytes / bytes); ++i) {
      weights.push_back(weight(type, n, k));
    }
    const Tensor x = random(DType::kF32, {m, k}), out = random(DType::kF32, {m, n});
    size_t next = 0;
    row(fmt::format("linear {} M={} {}x{}", dtype_name(type), m, n, k),
        static_cast<double>(weights[0].num_bytes() + x.num_bytes() + out.num_bytes()),
        2.0 * m * n * k, [&] { ops_->linear(x, weights[next++ % weights.size()], {}, out); });
    buffers_.clear();
  }

  // `tokens` tokens with top_k of `experts` experts each.
  void grouped(DType type, int64_t tokens, int64_t top_k, int64_t experts, int64_t n, int64_t k) {
    if (!wanted(fmt::format("grouped {}", dtype_name(type)))) return;
    std::vector<Weight> weights;
    for (int64_t e = 0; e < experts; ++e) weights.push_back(weight(type, n, k));
    const int64_t rows = tokens * top_k;
    // Spread evenly and at random, as a balanced router does.
    std::vector<int32_t> counts(experts, 0);
    for (int64_t i = 0; i < rows; ++i) ++counts[engine_() % experts];
    const Tensor offsets = random(DType::kI32, {experts + 1});
    int64_t used = 0;
    offsets.as<int32_t>()[0] = 0;
    for (int64_t e = 0; e < experts; ++e) {
      offsets.as<int32_t>()[e + 1] = offsets.as<int32_t>()[e] + counts[e];
      used += counts[e] > 0;
    }
    const Tensor x = random(DType::kF32, {rows, k}), out = random(DType::kF32, {rows, n});
    row(fmt::format("grouped_linear {} T={} top {} of {}, {}x{}", dtype_name(type), tokens, top_k,
                    experts, n, k),
        static_cast<double>(used * weights[0].num_bytes() + x.num_bytes() + out.num_bytes()),
        2.0 * rows * n * k, [&] { ops_->grouped_linear(x, weights, offsets, out); });
    buffers_.clear();
  }

  void mla_decode(DType type, int64_t sequences, int64_t context, int64_t heads) {
    if (!wanted("mla_decode")) return;
    constexpr int64_t kLora = 512, kRope = 64, kPage = 64;
    const int64_t pages = (context + kPage - 1) / kPage;
    const Tensor cache = random(type, {sequences * pages * kPage, kLora + kRope});
    const PagedBatch batch = paged(sequences, 1, context, kPage);
    const Tensor q = random(DType::kF32, {sequences, heads, kLora + kRope});
    const Tensor out = random(DType::kF32, {sequences, heads, kLora});
    const double keys = static_cast<double>(sequences) * static_cast<double>(context);
    row(fmt::format("mla_decode {} S={} context {} heads {}", dtype_name(type), sequences, context,
                    heads),
        keys * (kLora + kRope) * static_cast<double>(dtype_size(type)),
        keys * heads * 2 * (2 * kLora + kRope),
        [&] { ops_->mla_decode(q, cache, batch, 0.07f, out); });
    buffers_.clear();
  }

  void mla_prefill(int64_t tokens, int64_t context, int64_t heads) {
    if (!wanted("mla_prefill")) return;
    constexpr int64_t kNope = 128, kRope = 64, kV = 128;
    const Tensor kv = random(DType::kF32, {context, heads, kNope + kV});
    const Tensor k_pe = random(DType::kF32, {context, kRope});
    const Tensor q = random(DType::kF32, {tokens, heads, kNope + kRope});
    const Tensor positions = random(DType::kI32, {tokens});
    for (int64_t t = 0; t < tokens; ++t) {
      positions.as<int32_t>()[t] = static_cast<int32_t>(context - tokens + t);
    }
    const AttentionState state{random(DType::kF32, {tokens, heads, kV}),
                               random(DType::kF32, {tokens, heads}),
                               random(DType::kF32, {tokens, heads})};
    const double pairs = static_cast<double>(tokens) * (context - tokens + (tokens + 1) / 2.0);
    row(fmt::format("mla_prefill T={} context {} heads {}", tokens, context, heads),
        static_cast<double>(kv.num_bytes() + k_pe.num_bytes()),
        pairs * heads * 2 * (kNope + kRope + kV), [&] {
          ops_->begin_state(state);
          ops_->mla_prefill(q, kv, k_pe, positions, 0, 0.07f, state);
        });
    buffers_.clear();
  }

  void gqa(DType type, int64_t sequences, int64_t tokens, int64_t context, int64_t heads,
           int64_t kv_heads) {
    if (!wanted("gqa_attention")) return;
    constexpr int64_t kDim = 128, kPage = 64;
    const int64_t slots = sequences * ((context + kPage - 1) / kPage) * kPage;
    const Tensor k = random(type, {slots, kv_heads * kDim}),
                 v = random(type, {slots, kv_heads * kDim});
    const PagedBatch batch = paged(sequences, tokens, context, kPage);
    const Tensor q = random(DType::kF32, {sequences * tokens, heads, kDim});
    const Tensor out = random(DType::kF32, {sequences * tokens, heads, kDim});
    const double pairs = sequences * tokens * (context - tokens + (tokens + 1) / 2.0);
    row(fmt::format("gqa_attention {} S={} T={} context {} {}/{}", dtype_name(type), sequences,
                    tokens, context, heads, kv_heads),
        2.0 * sequences * context * kv_heads * kDim * static_cast<double>(dtype_size(type)),
        pairs * heads * 4 * kDim, [&] {
          ops_->gqa_attention(q, k, v, batch, {static_cast<int32_t>(heads / kv_heads), 0, 0}, 0.09f,
                              out);
        });
    buffers_.clear();
  }

  void write_json() const {
    if (options_.json.empty()) return;
    std::ofstream file(options_.json);
    file << nlohmann::json{{"threads", options_.threads},
                           {"target", cpu_target_name()},
                           {"read_bytes_per_second", bandwidth_},
                           {"fma_flops_per_second", peak_},
                           {"verbs", results_}}
                .dump(2)
         << "\n";
    if (!file.flush()) throw_invalid("--json {}: cannot be written", options_.json);
  }

 private:
  bool wanted(const std::string& verb) const {
    return options_.only.empty() || verb.find(options_.only) != std::string::npos;
  }

  Tensor random(DType type, std::initializer_list<int64_t> dims) {
    Tensor tensor(nullptr, type, dims);
    buffers_.push_back(device_->allocate(std::max<int64_t>(tensor.num_bytes(), 1)));
    tensor.data = buffers_.back().data();
    if (type == DType::kF32) {
      for (int64_t i = 0; i < tensor.num_elements(); ++i) {
        tensor.as<float>()[i] = static_cast<float>(engine_()) * 0x1p-32f - 0.5f;
      }
      return tensor;
    }
    // Bytes of which every code is a number of ordinary size: the values do not matter for speed.
    for (int64_t i = 0; i < tensor.num_bytes(); ++i) {
      tensor.as<uint8_t>()[i] = static_cast<uint8_t>(engine_() & 0x3f);
    }
    return tensor;
  }

  Weight weight(DType type, int64_t n, int64_t k) {
    Weight w{.data = random(type, {n, k})};
    if (type == DType::kF8E4M3) {
      w.scale = random(DType::kF32, {(n + 127) / 128, (k + 127) / 128});
      w.block_rows = w.block_cols = 128;
    }
    return w;
  }

  PagedBatch paged(int64_t sequences, int64_t tokens, int64_t context, int64_t page) {
    const int64_t pages = (context + page - 1) / page;
    PagedBatch batch{static_cast<int32_t>(page), random(DType::kI32, {sequences + 1}),
                     random(DType::kI32, {sequences}), random(DType::kI32, {sequences, pages})};
    std::vector<int32_t> order(sequences * pages);
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), engine_);
    std::copy(order.begin(), order.end(), batch.block_tables.as<int32_t>());
    for (int64_t s = 0; s <= sequences; ++s) {
      batch.query_start.as<int32_t>()[s] = static_cast<int32_t>(s * tokens);
    }
    std::fill_n(batch.context_len.as<int32_t>(), sequences, static_cast<int32_t>(context));
    return batch;
  }

  // The limit of a verb is the slower of reading its bytes and doing its operations.
  void row(const std::string& name, double bytes, double flops, const std::function<void()>& verb) {
    verb();  // pages and scratch
    std::vector<double> seconds;
    for (int r = 0; r < options_.repeats; ++r) {
      // Enough calls for 30 ms, so that neither the clock nor the hand-over counts.
      int calls = 0;
      const double start = now(options_.clock);
      double elapsed = 0;
      do {
        verb();
        ++calls;
        elapsed = now(options_.clock) - start;
      } while (elapsed < 0.03);
      seconds.push_back(elapsed / calls);
    }
    std::sort(seconds.begin(), seconds.end());
    const double t = seconds[seconds.size() / 2];
    const double limit = std::max(bytes / bandwidth_, flops / peak_);
    fmt::print("{:<44} {:>10.1f} {:>8.1f} {:>10.1f} {:>7.0f} % {}\n", name, t * 1e6,
               bytes / t / 1e9, flops / t / 1e9, 100 * limit / t,
               bytes / bandwidth_ > flops / peak_ ? "(bandwidth)" : "(FMA)");
    std::fflush(stdout);
    results_.push_back({{"name", name},
                        {"seconds", t},
                        {"fastest_seconds", seconds.front()},
                        {"bytes", bytes},
                        {"flops", flops},
                        {"limit_seconds", limit}});
  }

  Options options_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Ops> ops_;
  std::mt19937 engine_{1};
  double bandwidth_ = 0, peak_ = 0;
  std::vector<Buffer> buffers_;
  nlohmann::json results_ = nlohmann::json::array();
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) throw_invalid("{} needs a value", flag);
    if (flag == "--threads") {
      options.threads = std::stoi(argv[i + 1]);
    } else if (flag == "--repeats") {
      options.repeats = std::stoi(argv[i + 1]);
    } else if (flag == "--only") {
      options.only = argv[i + 1];
    } else if (flag == "--json") {
      options.json = argv[i + 1];
    } else if (flag == "--clock") {
      options.clock = argv[i + 1] == std::string("thread") ? Clock::kThread : Clock::kWall;
    } else {
      throw_invalid("unknown flag {}; known are --threads, --repeats, --only, --json, --clock",
                    flag);
    }
  }
  return options;
}

void run(const Options& options) {
  Bench bench(options);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const int64_t m : {1, 4, 16, 256}) {
      bench.linear(type, m, 10944, 2048);  // V2-Lite dense MLP: up, down
      bench.linear(type, m, 2048, 10944);
      bench.linear(type, m, 2048, 7168);  // V3: kv_a-like, and one expert's up
      bench.linear(type, m, 8960, 1536);  // R1-Distill-Qwen-1.5B MLP
    }
  }
  for (const int64_t tokens : {1, 16, 256}) {
    bench.grouped(DType::kBF16, tokens, 6, 64, 1408, 2048);  // V2-Lite experts
    bench.grouped(DType::kF8E4M3, tokens, 6, 64, 1408, 2048);
  }
  for (const int64_t context : {512, 8192, 32768}) bench.mla_decode(DType::kBF16, 1, context, 16);
  bench.mla_decode(DType::kBF16, 16, 1024, 16);
  bench.mla_decode(DType::kBF16, 1, 8192, 128);  // V3
  bench.mla_prefill(256, 256, 16);
  bench.mla_prefill(256, 4096, 16);
  bench.gqa(DType::kBF16, 1, 1, 8192, 12, 2);  // R1-Distill-Qwen-1.5B
  bench.gqa(DType::kBF16, 16, 1, 1024, 12, 2);
  bench.gqa(DType::kBF16, 1, 256, 2048, 12, 2);
  bench.write_json();
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  try {
    shoal::bench::run(shoal::bench::parse(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "shoal_bench_kernels: {}\n", error.what());
    return 1;
  }
}
