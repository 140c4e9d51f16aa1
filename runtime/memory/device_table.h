// Devices that a plan can be made for without having one.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "runtime/memory/dry_run.h"

namespace shoal {

struct DeviceSpec {
  std::string name;
  uint64_t bytes = 0;          // of memory, as nvidia-smi reports it
  double gigabytes_per_s = 0;  // of that memory
  // Dense rates of the matrix units with F32 (INT8: I32) accumulation; 0: it has none for the type.
  double bf16_tflops = 0, fp8_tflops = 0, int8_tops = 0;
  GpuTraits gpu;
  // To the other GPUs of the node, each way, of one GPU; and what a small all-reduce costs.
  std::string link;
  double link_gigabytes_per_s = 0;
  double all_reduce_us = 0;
  double host_gigabytes_per_s = 0;  // to and from host memory
  bool on_gpu = true;
};

std::span<const DeviceSpec> known_devices();

// A number of one device: "8xH100", "1x RTX 4090", "H200"; or "2xNAME=192GiB,5300,1300": bytes, GB/s and
// dense BF16 TFLOPS, on PCIe. Throws InvalidInput, naming the devices that are known.
struct DeviceChoice {
  int count = 1;
  DeviceSpec device;
};
DeviceChoice parse_gpus(const std::string& text);

// This machine's cores, or as many as given, with `bytes` of memory.
DeviceSpec cpu_device(int cores, uint64_t bytes);

// "24GiB", "512 GB", "1024": bytes. Throws InvalidInput naming `flag` for what is no size, 0 or negative.
uint64_t parse_size(const std::string& flag, const std::string& text);

}  // namespace shoal
