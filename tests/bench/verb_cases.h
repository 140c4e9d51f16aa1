// One function per verb: makes its inputs on the device, counts the bytes and FLOPs that it cannot
// do without, times it and reports a row.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/device_data.h"
#include "tests/bench/kernel_plan.h"
#include "tests/bench/meter.h"
#include "tests/bench/report.h"

namespace shoal::bench {

class VerbCases {
 public:
  VerbCases(Meter& meter, Report& report)
      : meter_(meter), report_(report), ops_(meter.ops()), data_(meter.device()) {}

  void linear(const std::string& name, DType type, int64_t m, int64_t n, int64_t k);
  // The products between heads and latents of absorbed MLA: [T, H, k] by [H, n, k].
  void head_linear(const std::string& name, int64_t tokens, int64_t heads, int64_t n, int64_t k);
  // n, k of one expert; tokens as the router spreads them, those of other ranks' experts left out.
  void grouped_linear(const ModelShape& model, DType type, int64_t tokens, int64_t n, int64_t k);
  void router(const ModelShape& model, int64_t tokens);       // route, sort_by_expert
  void expert_rows(const ModelShape& model, int64_t tokens);  // gather_rows, silu_mul, combine
  void rows(const ModelShape& model, int64_t tokens);  // norms, add, copy, embedding, rope, cache
  void mla_decode(int64_t sequences, int64_t context, int64_t heads);
  void mla_prefill(int64_t tokens, int64_t context, int64_t heads);
  void gqa_attention(int64_t sequences, int64_t tokens, int64_t context, int64_t heads,
                     int64_t kv_heads);

 private:
  // How many sets of inputs of so many bytes it takes to be cold.
  int sets_of(int64_t bytes) const;
  // Batches over disjoint pages of one cache of `slots` rows.
  struct Paged {
    std::vector<PagedBatch> batches;
    int64_t slots = 0;
  };
  Paged paged(int64_t sequences, int64_t tokens, int64_t context, int sets);
  std::vector<int32_t> choices(const ModelShape& model, int64_t tokens);  // [tokens, top_k]
  // `call(i)` works on set i of the inputs. Drops all inputs.
  void measure(const std::string& verb, const std::string& shape, DType type, double bytes,
               double flops, int sets, const std::function<void(int)>& call);
  bool wanted(const std::string& verb, const std::string& shape, DType type) const {
    return report_.wanted(verb, shape, std::string(dtype_name(type)));
  }
  DType act() const { return meter_.activation(); }

  Meter& meter_;
  Report& report_;
  Ops& ops_;
  DeviceData data_;
};

// All rows of a plan.
void run_kernels(Meter& meter, Report& report, const KernelPlan& plan);

}  // namespace shoal::bench
