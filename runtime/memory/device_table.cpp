#include "runtime/memory/device_table.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Links, each way, of one GPU, less than the number on the box by what protocols take: PCIe 4.0 x16 has
// 31.5 GB/s raw, of which copies reach 25; 5.0 twice that; NVLink 3, 4 and 5 have 300, 450 and 900.
constexpr double kPcie4 = 25, kPcie5 = 50;
// A small all-reduce: 7 us by one kernel over NVLink, 20 us by NCCL there; over PCIe without peer access
// (GeForce cards) it goes through host memory, some 30 us. Measured by others; not yet on our side.
constexpr double kNvlinkUs = 7, kPcieUs = 30;

DeviceSpec pcie(const char* name, uint64_t mib, double bandwidth, double bf16, double fp8, double int8,
                GpuTraits gpu, double link = kPcie4) {
  return {.name = name,
          .bytes = mib * kMiB,
          .gigabytes_per_s = bandwidth,
          .bf16_tflops = bf16,
          .fp8_tflops = fp8,
          .int8_tops = int8,
          .gpu = gpu,
          .link = link == kPcie4 ? "PCIe 4.0" : "PCIe 5.0",
          .link_gigabytes_per_s = link,
          .all_reduce_us = kPcieUs,
          .host_gigabytes_per_s = link};
}

DeviceSpec nvlink(const char* name, uint64_t mib, double bandwidth, double bf16, double fp8, double int8,
                  GpuTraits gpu, double link, double host) {
  DeviceSpec spec = pcie(name, mib, bandwidth, bf16, fp8, int8, gpu, host);
  spec.link = "NVLink";
  spec.link_gigabytes_per_s = link;
  spec.all_reduce_us = kNvlinkUs;
  return spec;
}

const std::vector<DeviceSpec>& table() {
  static const std::vector<DeviceSpec> devices = {
      // NVIDIA Ampere GA102 whitepaper v2.1, table 2 (BF16 with F32 accumulation).
      pcie("RTX 3090", 24576, 936, 71, 0, 284, {86, 82}),
      // NVIDIA Ada whitepaper v2.1, appendix A.
      pcie("RTX 4090", 24564, 1008, 165.2, 330.3, 660.6, {89, 128}),
      // NVIDIA RTX Blackwell whitepaper v1.1, appendix A.
      pcie("RTX 5090", 32607, 1792, 209.5, 419, 838, {120, 170}, kPcie5),
      // NVIDIA L4 and L40S datasheets; the figures there are with sparsity: halved.
      pcie("L4", 23034, 300, 121, 242.5, 242.5, {89, 58}),
      pcie("L40S", 46068, 864, 362, 733, 733, {89, 142}),
      // NVIDIA A100 datasheet (SXM4).
      nvlink("A100 40GB", 40960, 1555, 312, 0, 624, {80, 108}, 300, kPcie4),
      nvlink("A100 80GB", 81920, 2039, 312, 0, 624, {80, 108}, 300, kPcie4),
      // NVIDIA H100 datasheet (SXM5), H200 datasheet; halved, as above.
      nvlink("H100", 81559, 3350, 989.4, 1978.9, 1978.9, {90, 132}, 450, kPcie5),
      nvlink("H200", 143771, 4800, 989.4, 1978.9, 1978.9, {90, 132}, 450, kPcie5),
      // NVIDIA DGX B200 datasheet, an eighth of it; halved, as above.
      nvlink("B200", 183359, 8000, 2250, 4500, 4500, {100, 148}, 900, kPcie5),
  };
  return devices;
}

// "rtx4090" for "RTX 4090", "NVIDIA GeForce RTX 4090" and "rtx-4090".
std::string key_of(const std::string& name) {
  std::string key;
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c))) {
      key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  for (const std::string_view prefix : {"nvidia", "geforce"}) {
    if (key.starts_with(prefix)) key.erase(0, prefix.size());
  }
  return key;
}

std::string known_names() {
  std::string names;
  for (const DeviceSpec& device : table()) names += (names.empty() ? "" : ", ") + device.name;
  return names;
}

double positive_number(const std::string& text, const std::string& whole, const char* what) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value > 0) || value > 1e9) {
    throw_invalid("--gpus {}: {} is no {}; write NAME=bytes,GB/s,TFLOPS", whole, text, what);
  }
  return value;
}

DeviceSpec described(const std::string& text, size_t equals) {
  std::vector<std::string> parts(1);
  for (const char c : text.substr(equals + 1)) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  if (parts.size() != 3 || equals == 0) {
    throw_invalid("--gpus {}: write NAME=bytes,GB/s,TFLOPS, as in X=48GiB,900,180", text);
  }
  DeviceSpec spec = pcie("", 0, 0, 0, 0, 0, GpuTraits{});
  spec.name = text.substr(0, equals);
  spec.bytes = parse_size("--gpus " + text + ":", parts[0]);
  spec.gigabytes_per_s = positive_number(parts[1], text, "bandwidth in GB/s");
  spec.bf16_tflops = positive_number(parts[2], text, "rate in TFLOPS");
  return spec;
}

}  // namespace

std::span<const DeviceSpec> known_devices() { return table(); }

DeviceChoice parse_gpus(const std::string& given) {
  std::string text;
  for (const char c : given) {
    if (c != '"' && c != '\'') text += c;
  }
  DeviceChoice choice;
  size_t digits = 0;
  while (digits < text.size() && std::isdigit(static_cast<unsigned char>(text[digits]))) ++digits;
  if (digits > 0 && digits < text.size() && (text[digits] == 'x' || text[digits] == 'X')) {
    constexpr int kMost = 4096;
    const auto [end, error] = std::from_chars(text.data(), text.data() + digits, choice.count);
    if (error != std::errc() || choice.count < 1 || choice.count > kMost) {
      throw_invalid("--gpus {}: the number of GPUs is 1 to {}", given, kMost);
    }
    text.erase(0, digits + 1);
  }
  text.erase(0, text.find_first_not_of(' '));
  if (const size_t equals = text.find('='); equals != std::string::npos) {
    choice.device = described(text, equals);
    return choice;
  }
  std::string key = key_of(text);
  if (key == "a100") key = "a10080gb";
  const auto matches = [&](const DeviceSpec& device) {
    const std::string name = key_of(device.name);
    return name == key || name == key + "gb" || name == "rtx" + key || key == name + "sxm";
  };
  const auto at = std::find_if(table().begin(), table().end(), matches);
  if (at == table().end()) {
    throw_invalid("--gpus {}: known are {}; others as NAME=bytes,GB/s,TFLOPS", given, known_names());
  }
  choice.device = *at;
  return choice;
}

DeviceSpec cpu_device(int cores, uint64_t bytes) {
  // docs/performance.md, two cores of a Zen 5 server: 41 GB/s and 280 GFLOP/s in F32 a core; a socket's
  // memory ends at some 300 GB/s.
  constexpr double kCoreGigabytes = 41, kSocketGigabytes = 300, kCoreTflops = 0.28;
  DeviceSpec spec;
  spec.name = fmt::format("CPU, {} core{}", cores, cores == 1 ? "" : "s");
  spec.bytes = bytes;
  spec.gigabytes_per_s = std::min(cores * kCoreGigabytes, kSocketGigabytes);
  spec.bf16_tflops = cores * kCoreTflops;
  spec.link = "memory";
  spec.link_gigabytes_per_s = spec.host_gigabytes_per_s = kCoreGigabytes / 2;
  spec.all_reduce_us = 10;  // two ranks that poll: tests/parallel
  spec.on_gpu = false;
  return spec;
}

uint64_t parse_size(const std::string& flag, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit;
  for (const char* c = end; error == std::errc() && c < text.data() + text.size(); ++c) {
    if (*c != ' ') unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  constexpr double kb = 1024;
  const std::pair<const char*, double> units[] = {
      {"", 1},          {"b", 1},           {"k", kb},           {"kb", kb},         {"kib", kb},
      {"m", kb * kb},   {"mb", kb * kb},    {"mib", kb * kb},    {"g", kb * kb * kb}, {"gb", kb * kb * kb},
      {"gib", kb * kb * kb}, {"t", kb * kb * kb * kb}, {"tb", kb * kb * kb * kb}, {"tib", kb * kb * kb * kb}};
  for (const auto& [name, factor] : units) {
    if (error != std::errc() || unit != name) continue;
    const double bytes = value * factor;
    if (!(bytes >= 1) || bytes > 1e18) break;
    return static_cast<uint64_t>(std::llround(bytes));
  }
  throw_invalid("{} {}: should be a size above 0, such as 24GiB", flag, text);
}

}  // namespace shoal
