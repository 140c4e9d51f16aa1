// Models written by quantize_model: the same weights as quantising while loading, runs that go on where
// they were stopped, and outputs that are refused or fail.
#include "runtime/quantization/quantize_model.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/tensor_plan.h"
#include "runtime/quantization/quantized_weight.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/quantization/stored_bytes.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

std::string golden(const std::string& name) {
  return SHOAL_SOURCE_DIR "/tests/golden/data/" + name;
}

QuantizeOptions options_for(const std::string& input, const std::string& output,
                            const std::string& scheme) {
  QuantizeOptions options;
  options.input = input;
  options.output = output;
  options.scheme = parse_scheme("--scheme", scheme, /*for_file=*/true);
  options.max_shard_bytes = 20000;
  options.threads = 2;
  return options;
}

std::map<std::string, std::string> contents(const std::string& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(dir)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename()] = std::string(std::istreambuf_iterator<char>(file), {});
  }
  return files;
}

TEST_CASE("what is written loads as what is quantised while loading, tensor by tensor") {
  for (const char* model : {"v3", "qwen2", "llama3", "v2-lite"}) {
    for (const char* scheme : {"int4", "int4-asym-g32", "int8", "fp8"}) {
      INFO(model << " as " << scheme);
      const test::TempDir dir;
      const std::string output = dir.path("out");
      if (std::string(model) == "llama3" && std::string(scheme).starts_with("int4")) {
        INVALID(quantize_model(options_for(golden(model), output, scheme)), "--scheme int4", "16");
        CHECK_FALSE(fs::exists(output));
        continue;
      }
      quantize_model(options_for(golden(model), output, scheme));
      const ModelConfig config = read_model_config(output);
      const auto written = Checkpoint::open(output);
      // A file's zero points are integers.
      const auto loading = quantize_checkpoint(Checkpoint::open(golden(model)),
                                               parse_scheme("--scheme", scheme, /*for_file=*/true));
      CHECK_NOTHROW(check_all_known(*written, config));
      CHECK(written->num_files() > 1);
      bool quantised = false;
      uint64_t read = 0;
      for (const PlannedTensor& tensor : tensor_plan(config)) {
        INFO(tensor.name);
        const auto a = planned_weight(*written, tensor), b = planned_weight(*loading, tensor);
        CHECK(a->form() == b->form());
        CHECK(test::read_all(*a) == test::read_all(*b));
        quantised = quantised || has_scales(a->form().dtype);
        read += a->stored_bytes({0, a->n()}, {0, a->k()});
      }
      CHECK(quantised);
      CHECK(read == written->total_bytes());
      for (const auto& [name, text] : contents(golden(model))) {
        if (!name.ends_with(".safetensors") && !name.ends_with(".json")) CHECK(contents(output)[name] == text);
      }
    }
  }
}

TEST_CASE("an FP8 model becomes int4 with what the scheme leaves in bfloat16") {
  const test::TempDir dir;
  quantize_model(options_for(golden("v3-fp8"), dir.path("out"), "int4"));
  const ModelConfig config = read_model_config(dir.path("out"));
  const auto written = Checkpoint::open(dir.path("out"));
  const auto loading = open_checkpoint(golden("v3-fp8"), "int4");
  for (const PlannedTensor& tensor : tensor_plan(config)) {
    const auto a = planned_weight(*written, tensor), b = planned_weight(*loading, tensor);
    INFO(tensor.name);
    CHECK(a->form().dtype != DType::kF8E4M3);
    if (a->form() == b->form()) CHECK(test::read_all(*a) == test::read_all(*b));
  }
}

TEST_CASE("an interrupted run goes on: whole shards stay, others are written again") {
  const test::TempDir dir;
  const auto options = options_for(golden("v3"), dir.path("out"), "int4");
  quantize_model(options_for(golden("v3"), dir.path("whole"), "int4"));
  const auto whole = contents(dir.path("whole"));
  REQUIRE(whole.size() > 5);
  struct Stop {};
  uint64_t stop_at = 0;
  const auto interrupted = [&](uint64_t done, uint64_t total) {
    if (done > total * stop_at / 4) throw Stop();
  };
  for (stop_at = 1; stop_at <= 2; ++stop_at) {
    CHECK_THROWS_AS(quantize_model(options, interrupted), Stop);
    CHECK_FALSE(fs::exists(dir.path("out/config.json")));
    for (const auto& [name, text] : contents(dir.path("out"))) CHECK_FALSE(name.ends_with(".partial"));
  }
  // A shard that a disk damaged.
  std::string shard_name;
  for (const auto& [name, text] : contents(dir.path("out"))) {
    if (name.ends_with(".safetensors")) {
      shard_name = name;
      break;
    }
  }
  REQUIRE_FALSE(shard_name.empty());
  {
    std::fstream file(dir.path("out/" + shard_name), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-3, std::ios::end);
    file.put('\x5a');
  }
  quantize_model(options);
  CHECK(contents(dir.path("out")) == whole);
}

TEST_CASE("outputs that cannot be taken are refused, and nothing is touched") {
  const test::TempDir dir;
  const std::string input = dir.path("in");
  fs::copy(golden("qwen2"), input);
  const auto before = contents(input);
  INVALID(quantize_model(options_for(input, input, "int4")), "--output", "the model itself");
  CHECK(contents(input) == before);
  dir.write("full/file", "x");
  INVALID(quantize_model(options_for(input, dir.path("full"), "int4")), "--output", "not empty");
  CHECK(contents(dir.path("full")).size() == 1);
  INVALID(quantize_model(options_for(input, "/proc/nowhere", "int4")), "--output", "/proc/nowhere");
  INVALID(quantize_model(options_for(dir.path("none"), dir.path("out"), "int4")), "none");
  // Begun with other flags.
  struct Stop {};
  CHECK_THROWS_AS(quantize_model(options_for(input, dir.path("out"), "int4"),
                                 [](uint64_t, uint64_t) { throw Stop(); }),
                  Stop);
  INVALID(quantize_model(options_for(input, dir.path("out"), "int8")), "--output", "other flags");
  // Quantised already.
  quantize_model(options_for(input, dir.path("out"), "int4"));
  INVALID(quantize_model(options_for(dir.path("out"), dir.path("again"), "int8")), "already");
  INVALID(quantize_model(options_for(golden("v3-fp8"), dir.path("fp8"), "fp8")), "already");
}

TEST_CASE("a disk that is full: one line, no half file, no model") {
  const test::TempDir dir;
  const auto options = options_for(golden("v3"), dir.path("out"), "int4");
  // A limit on file sizes fails a write as a full disk does.
  struct rlimit before {};
  getrlimit(RLIMIT_FSIZE, &before);
  struct rlimit limit = before;
  limit.rlim_cur = 10000;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  std::string message;
  try {
    quantize_model(options);
  } catch (const InvalidInput& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK_THAT(message, Catch::Contains(".safetensors: File too large"));
  CHECK_FALSE(fs::exists(dir.path("out/config.json")));
  for (const auto& [name, text] : contents(dir.path("out"))) CHECK_FALSE(name.ends_with(".partial"));
  quantize_model(options);
  CHECK_NOTHROW(check_all_known(*Checkpoint::open(dir.path("out")), read_model_config(dir.path("out"))));
}

}  // namespace
}  // namespace shoal
