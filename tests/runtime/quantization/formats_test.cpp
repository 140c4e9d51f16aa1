// Every packed layout that is read, against what NumPy decoded (tests/runtime/checkpoint/
// quantized_generate.py): bit for bit, whole and in every kind of slice; and what is refused.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/checkpoint_source.h"
#include "runtime/quantization/decode.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/checkpoint/test_devices.h"
#include "tests/support/npy.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

const std::string kData = SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/quantized_data";

std::vector<std::string> formats() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kData)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST_CASE("every format decodes to what NumPy says, whole and in slices") {
  REQUIRE(formats().size() == 20);
  for (const std::string& name : formats()) {
    INFO(name);
    const NpyArray expected = read_npy(kData + "/" + name + "/values.npy");
    const int64_t n = expected.rows, k = expected.columns;
    const auto checkpoint = Checkpoint::open(kData + "/" + name);
    CHECK(checkpoint->names() == std::vector<std::string>{"w.weight"});
    CHECK(checkpoint->has("w.weight"));
    CHECK_FALSE(checkpoint->quantization().empty());
    const auto weight = checkpoint->matrix("w", n, k);
    std::vector<float> values(n * k);
    decode_weight(*weight, {0, n}, {0, k}, values.data());
    CHECK(values == expected.values);
    CHECK(weight->stored_bytes({0, n}, {0, k}) == checkpoint->total_bytes());
    // Cuts inside groups, words and blocks.
    for (const Range rows : {Range{0, n}, Range{1, 2}, Range{3, n}, Range{n / 2 - 1, n / 2 + 2}}) {
      for (const Range cols : {Range{0, k}, Range{2, 4}, Range{10, 38}, Range{k / 2, k},
                               Range{k - 2, k}}) {
        std::vector<float> part(rows.size() * cols.size()), want;
        decode_weight(*weight, rows, cols, part.data());
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          want.insert(want.end(), expected.values.begin() + i * k + cols.begin,
                      expected.values.begin() + i * k + cols.end);
        }
        INFO("rows " << rows.begin << " to " << rows.end << ", columns " << cols.begin << " to "
                     << cols.end);
        CHECK(part == want);
      }
    }
    INVALID(checkpoint->matrix("w", n, k + 32), "\"w.");
    INVALID(checkpoint->matrix("x", n, k), "\"x.weight\"", "missing");
  }
}

// The weight as a device holds it, decoded.
std::vector<float> held_values(const Weight& w, Device& device) {
  const auto fetch = [&]<typename T>(const Tensor& t, T) {
    std::vector<T> values(t.num_bytes() / sizeof(T));
    if (!values.empty()) device.copy_to_host(values.data(), t.data, t.num_bytes());
    return values;
  };
  const auto data = fetch(w.data, uint8_t{});
  if (w.data.dtype == DType::kF16) {
    std::vector<float> values;
    for (const uint16_t bits : fetch(w.data, uint16_t{})) values.push_back(to_float(F16{bits}));
    return values;
  }
  const auto scale = fetch(w.scale, 0.0f);
  const auto min = w.min.defined() ? fetch(w.min, 0.0f) : std::vector<float>(scale.size());
  std::vector<float> values;
  for (int64_t i = 0; i < w.n(); ++i) {
    for (int64_t j = 0; j < w.k(); ++j) {
      const int64_t at = i * w.k() + j;
      float number;
      if (w.data.dtype == DType::kI4x2) {
        const int nibble = at % 2 == 0 ? data[at / 2] & 15 : data[at / 2] >> 4;
        number = static_cast<float>((nibble ^ 8) - 8);
      } else if (w.data.dtype == DType::kI8) {
        number = static_cast<int8_t>(data[at]);
      } else {
        number = to_float(F8E4M3{data[at]});
      }
      const int64_t block = (i + w.row_offset) / w.block_rows * w.scale.dim(1) +
                            (j + w.col_offset) / w.block_cols;
      values.push_back(number * scale[block] + min[block]);
    }
  }
  return values;
}

TEST_CASE("ranks hold their shards of every format, and read little more than these") {
  for (const std::string& name : formats()) {
    const NpyArray expected = read_npy(kData + "/" + name + "/values.npy");
    const int64_t n = expected.rows, k = expected.columns;
    const auto checkpoint = Checkpoint::open(kData + "/" + name);
    for (const bool by_columns : {false, true}) {
      for (int ranks = 1; ranks <= 3; ++ranks) {
        const ShardTable table = by_columns ? split_evenly(k, ranks, column_unit(k))
                                            : split_evenly(n, ranks, column_unit(n));
        for (const Range part : table) {
          INFO(name << ", " << (by_columns ? "columns " : "rows ") << part.begin << " to " << part.end);
          const Range rows = by_columns ? Range{0, n} : part, cols = by_columns ? part : Range{0, k};
          test::RemoteDevice device;
          CheckpointSource source(*checkpoint, device, DType::kBF16);
          const Weight w = source.matrix("w", n, k, rows, cols);
          std::vector<float> want;
          for (int64_t i = rows.begin; i < rows.end; ++i) {
            want.insert(want.end(), expected.values.begin() + i * k + cols.begin,
                        expected.values.begin() + i * k + cols.end);
          }
          if (part.size() > 0) {
            check_weight(w);
            CHECK(held_values(w, device) == want);
          }
          CHECK(source.bytes_read() == checkpoint->matrix("w", n, k)->stored_bytes(rows, cols));
          if (part.size() * 2 <= (by_columns ? k : n)) {
            CHECK(source.bytes_read() < checkpoint->total_bytes() * 9 / 10);
          }
          CHECK(source.unused().empty());
        }
      }
    }
  }
}

// A copy of a format's folder whose config or tensors a test spoils.
class Spoiled {
 public:
  explicit Spoiled(const std::string& format) {
    fs::copy(kData + "/" + format, dir_.path(), fs::copy_options::recursive);
    config = nlohmann::json::parse(std::ifstream(dir_.path("config.json")));
    const NpyArray values = read_npy(dir_.path("values.npy"));
    n = values.rows;
    k = values.columns;
  }
  void tensors(const std::vector<test::StoredTensor>& tensors) {
    dir_.write("model.safetensors", test::safetensors_file(tensors));
  }
  void load() {
    dir_.write("config.json", config.dump());
    const auto weight = Checkpoint::open(dir_.path())->matrix("w", n, k);
    // The checkpoint is gone here: only forms are looked at.
    CHECK(weight->n() == n);
  }
  nlohmann::json config;
  int64_t n = 0, k = 0;

 private:
  test::TempDir dir_;
};

TEST_CASE("a quantization_config that is not supported is refused in one line that names it") {
  const auto refused = [](const std::string& format, const nlohmann::json& changes,
                          const std::string& part) {
    Spoiled model(format);
    model.config["quantization_config"].merge_patch(changes);
    INFO(changes.dump());
    INVALID(model.load(), "config.json", part);
  };
  refused("awq-g64", {{"bits", 3}}, "quantization_config.bits is 3; supported is 4");
  refused("awq-g64", {{"group_size", 24}}, "group_size is 24; supported are multiples of 16");
  refused("awq-g64", {{"group_size", 0}}, "group_size");
  refused("awq-g64", {{"version", "gemv"}}, "version is \"gemv\"");
  refused("awq-g64", {{"zero_point", false}}, "zero_point");
  refused("awq-g64", {{"odd", 1}}, "odd");
  refused("gptq-g128", {{"bits", 2}}, "quantization_config.bits is 2");
  refused("gptq-g128", {{"checkpoint_format", "marlin"}}, "checkpoint_format is \"marlin\"");
  refused("gptq-g128", {{"quant_method", "exl2"}}, "quant_method is \"exl2\"");
  refused("int4-g128", {{"format", "marlin-24"}}, "format is \"marlin-24\"");
  refused("int4-g128", {{"config_groups", {{"group_0", {{"weights", {{"num_bits", 2}}}}}}}}, "num_bits");
  refused("int4-g128", {{"config_groups", nlohmann::json::object({{"group_0", nullptr}})}},
          "config_groups");
  refused("int4-g128", {{"kv_cache_scheme", {{"num_bits", 8}}}}, "kv_cache_scheme");
}

TEST_CASE("tensors that contradict the config or each other are refused by name") {
  {  // scales of another group
    Spoiled model("int4-g128");
    model.config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 64;
    INVALID(model.load(), "\"w.weight_packed\"", "int4 with scales [20, 2]", "groups of 64");
  }
  {
    Spoiled model("gptq-g128");
    model.config["quantization_config"]["group_size"] = 64;
    INVALID(model.load(), "\"w.qzeros\"", "[2, 2]", "[4, 2]");
  }
  {
    Spoiled model("awq-g64");
    model.n = 20;
    INVALID(model.load(), "\"w.qweight\"", "20 outputs");
  }
  {  // a part is missing, or has another type
    Spoiled model("int4-g128");
    const std::string codes(20 * 32 * 4, '\0');
    model.tensors({{"w.weight_packed", "I32", {20, 32}, codes}});
    INVALID(model.load(), "\"w.weight_packed\"", "\"w.weight_scale\" is missing");
    model.tensors({{"w.weight_packed", "F32", {20, 32}, codes},
                   {"w.weight_scale", "F32", {20, 2}, std::string(160, '\0')},
                   {"w.weight_shape", "I64", {2}, std::string(16, '\0')}});
    INVALID(model.load(), "\"w.weight_packed\"", "float32", "int32");
    model.tensors({{"w.weight_packed", "I32", {20, 32}, codes},
                   {"w.weight_scale", "F32", {20, 2}, std::string(160, '\0')},
                   {"w.weight_shape", "I64", {2}, std::string(16, '\0')}});
    INVALID(model.load(), "\"w.weight_shape\"", "[0, 0]", "[20, 256]");
  }
  {  // packed tensors without a word in config.json
    Spoiled model("gptq-g128");
    model.config.erase("quantization_config");
    INVALID(model.load(), "\"w.qweight\"", "does not say how");
  }
}

TEST_CASE("values that lie are found when they are read") {
  const auto read = [](const std::vector<test::StoredTensor>& tensors, const std::string& config,
                       int64_t n, int64_t k) {
    test::TempDir dir;
    dir.write("config.json", config);
    dir.write("model.safetensors", test::safetensors_file(tensors));
    const auto checkpoint = Checkpoint::open(dir.path());
    std::vector<float> values(n * k);
    decode_weight(*checkpoint->matrix("w", n, k), {0, n}, {0, k}, values.data());
  };
  const std::string gptq =
      R"({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": true}})";
  const auto tensors = [](std::vector<int32_t> order, float scale, uint32_t zeros) {
    return std::vector<test::StoredTensor>{
        {"w.qweight", "I32", {4, 8}, std::string(128, '\x11')},
        {"w.qzeros", "I32", {2, 1}, test::bytes_of(std::vector<uint32_t>{zeros, zeros})},
        test::stored_f32("w.scales", {2, 8}, std::vector<float>(16, scale)),
        {"w.g_idx", "I32", {32}, test::bytes_of(order)}};
  };
  std::vector<int32_t> order(32);
  for (int i = 0; i < 32; ++i) order[i] = i / 16;
  CHECK_NOTHROW(read(tensors(order, 1, 0x77777777), gptq, 8, 32));
  INVALID(read(tensors(order, 1, 0x77777757), gptq, 8, 32), "zero point -2 in row 1", "symmetric");
  INVALID(read(tensors(order, INFINITY, 0x77777777), gptq, 8, 32), "\"w.scales\"", "not finite");
  std::swap(order[3], order[20]);
  INVALID(read(tensors(order, 1, 0x77777777), gptq, 8, 32), "\"w.g_idx\"", "column 3", "desc_act false");
  std::string any_order = gptq;
  any_order.insert(any_order.rfind("}}"), R"(, "desc_act": true)");
  CHECK_NOTHROW(read(tensors(order, 1, 0x77777777), any_order, 8, 32));
  INVALID(read(tensors(order, 1, 0x77777757), any_order, 8, 32), "zero point -2 in row 1", "symmetric");
  INVALID(read(tensors(order, 1e5f, 0x77777777), any_order, 8, 32), "beyond float16 in row 0");
  for (const int32_t wrong : {2, -1, INT32_MAX}) {
    order[3] = wrong;
    INVALID(read(tensors(order, 1, 0x77777777), any_order, 8, 32), "\"w.g_idx\"", "column 3", "of 2");
  }
  std::vector<test::StoredTensor> without = tensors(order, 1, 0x77777777);
  without.pop_back();
  INVALID(read(without, any_order, 8, 32), "desc_act", "\"w.g_idx\" is missing");
}

}  // namespace
}  // namespace shoal
