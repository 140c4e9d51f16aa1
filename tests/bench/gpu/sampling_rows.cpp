#include "tests/bench/gpu/sampling_rows.h"

#include <fmt/format.h>

#include "kernels/cuda/sampling.h"
#include "tests/bench/device_data.h"

namespace shoal::bench {

void sampling_rows(Meter& meter, Report& report, const KernelPlan& plan) {
  auto* device = dynamic_cast<CudaDevice*>(&meter.device());
  if (device == nullptr) return;
  DeviceData data(*device);
  CudaSampler sampler(*device);
  for (const ModelShape& model : plan.models) {
    for (const int64_t batch : plan.batches) {
      for (const bool drawn : {false, true}) {
        const std::string shape = fmt::format(
            "{} {} T={} of {}", model.name, drawn ? "top-k, top-p" : "greedy", batch, model.vocab);
        if (!report.wanted("sample", shape, "float32")) continue;
        SampleRow row;
        row.temperature = drawn ? 0.8f : 0.0f;
        row.top_k = drawn ? 50 : 0;
        row.top_p = drawn ? 0.95f : 1.0f;
        row.random = 0.5;
        std::vector<SampleRow> rows(batch, row);
        for (int64_t r = 0; r < batch; ++r) rows[r].logits_row = r;
        const Tensor logits = data.values(DType::kF32, {batch, model.vocab}, 8);
        // The logits were written a moment ago, as in a step: they need not come from memory.
        const double seconds = meter.seconds_issued([&] { sampler.launch(logits, rows, {}); });
        sampler.collect();
        report.add(
            {"sample", shape, "float32", seconds, static_cast<double>(logits.num_bytes()), 0});
        data.clear();
      }
    }
  }
}

}  // namespace shoal::bench
