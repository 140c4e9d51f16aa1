// Where the routed experts of a rank live, in numbers: what the plan (runtime/memory) decides and
// the ExpertStore keeps to.
#pragma once

#include <cstdint>
#include <string>

namespace shoal {

enum class ExpertHome : uint8_t { kDevice, kHost, kDisk };

// What happens to the rows of an expert that is not on the device: computed by the CPU, by the
// device to which the expert is streamed, or whichever is faster for so many rows.
enum class OffloadMode : uint8_t { kAuto, kCpu, kStream };

// Of one rank, over all layers. Experts are dealt out in turn, one of each layer after the other,
// first to the device, then to the host: a layer has as many as any other of each home, or one more
// or less.
struct ExpertCounts {
  int64_t device = 0, host = 0, disk = 0;
  int64_t total() const { return device + host + disk; }
};

// Of `total` that are dealt out over `layers`.
inline int64_t dealt_to_layer(int64_t total, int64_t layer, int64_t layers) {
  return total / layers + (layer < total % layers ? 1 : 0);
}

inline ExpertCounts counts_of_layer(const ExpertCounts& all, int64_t layer, int64_t layers) {
  ExpertCounts mine;
  mine.device = dealt_to_layer(all.device, layer, layers);
  mine.host = dealt_to_layer(all.device + all.host, layer, layers) - mine.device;
  mine.disk = dealt_to_layer(all.total(), layer, layers) - mine.device - mine.host;
  return mine;
}

// Rows from which streaming an expert is faster than multiplying on the CPU. Streaming takes bytes
// / link, whatever the rows; the CPU reads the same bytes from its memory, faster than any link,
// and then multiplies: rows x 2 x parameters / its arithmetic. A link of 0: there is none to stream
// over (the device is the CPU), and nothing is streamed.
int64_t stream_min_rows(uint64_t expert_bytes, int64_t expert_parameters,
                        double link_gigabytes_per_s, int cpu_threads);

// "auto", "cpu", "stream". Throws InvalidInput for another --expert-offload ("off" included).
OffloadMode parse_offload_mode(const std::string& value);

}  // namespace shoal
