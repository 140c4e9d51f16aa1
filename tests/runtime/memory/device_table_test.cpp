#include "runtime/memory/device_table.h"

#include <catch2/catch.hpp>

#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

TEST_CASE("GPUs by number and name, as people write them") {
  const struct {
    const char* text;
    int count;
    const char* name;
  } cases[] = {{"8xH100", 8, "H100"},           {"H200", 1, "H200"},
               {"1x\"RTX 4090\"", 1, "RTX 4090"}, {"4x RTX 4090", 4, "RTX 4090"},
               {"2xrtx4090", 2, "RTX 4090"},    {"2X4090", 2, "RTX 4090"},
               {"A100", 1, "A100 80GB"},        {"1xA100-40GB", 1, "A100 40GB"},
               {"16xA100 40", 16, "A100 40GB"}, {"NVIDIA GeForce RTX 3090", 1, "RTX 3090"},
               {"1xL40S", 1, "L40S"},           {"1xL4", 1, "L4"},
               {"8xB200", 8, "B200"},           {"1x5090", 1, "RTX 5090"}};
  for (const auto& c : cases) {
    INFO(c.text);
    const DeviceChoice choice = parse_gpus(c.text);
    CHECK(choice.count == c.count);
    CHECK(choice.device.name == c.name);
  }
}

TEST_CASE("a GPU that is not in the table is described") {
  const DeviceChoice choice = parse_gpus("2xMI=192GiB,5300,1307.5");
  CHECK(choice.count == 2);
  CHECK(choice.device.name == "MI");
  CHECK(choice.device.bytes == uint64_t{192} << 30);
  CHECK(choice.device.gigabytes_per_s == 5300);
  CHECK(choice.device.bf16_tflops == 1307.5);
}

TEST_CASE("what is no GPU is refused by name") {
  for (const char* text : {"", "8x", "0xH100", "9999999999xH100", "8xH1000", "X=", "X=1GiB", "X=1GiB,2",
                           "X=1GiB,2,3,4", "X=0,100,100", "X=-1GiB,100,100", "X=1GiB,0,100", "X=1GiB,nan,100",
                           "X=1GiB,100,-3", "=1GiB,100,100", "X=1GiB,1e99,100", "X=abc,1,1"}) {
    INFO(text);
    INVALID(parse_gpus(text), "--gpus");
  }
  INVALID(parse_gpus("8xH1000"), "known are RTX 3090, RTX 4090");
}

TEST_CASE("sizes") {
  CHECK(parse_size("--f", "24GiB") == uint64_t{24} << 30);
  CHECK(parse_size("--f", "1.5 gb") == uint64_t{3} << 29);
  CHECK(parse_size("--f", "4096") == 4096);
  for (const char* text : {"0", "-1", "-24GiB", "", "GiB", "12x", "nan", "inf", "1e30", "0x10"}) {
    INFO(text);
    INVALID(parse_size("--f", text), "--f");
  }
}

TEST_CASE("every device of the table has what a plan needs") {
  for (const DeviceSpec& device : known_devices()) {
    INFO(device.name);
    CHECK(parse_gpus(device.name).device.name == device.name);
    CHECK(device.bytes > uint64_t{20} << 30);
    CHECK(device.gigabytes_per_s > 100);
    CHECK(device.bf16_tflops > 50);
    CHECK(device.link_gigabytes_per_s > 0);
    CHECK(device.all_reduce_us > 0);
    CHECK(device.gpu.num_sms > 0);
    CHECK((device.fp8_tflops > 0) == (device.gpu.arch >= 89));
  }
}

}  // namespace
}  // namespace shoal
