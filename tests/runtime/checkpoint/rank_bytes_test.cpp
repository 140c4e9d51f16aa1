// The tensor plan against real checkpoints: what each rank reads and holds, counted and loaded.
#include "runtime/checkpoint/rank_bytes.h"

#include "runtime/checkpoint/checkpoint_source.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/checkpoint/test_devices.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> golden_models() {
  std::vector<std::string> dirs;
  for (const auto& entry : fs::directory_iterator(SHOAL_SOURCE_DIR "/tests/golden/data")) {
    if (entry.is_directory()) dirs.push_back(entry.path());
  }
  return dirs;
}

std::string without_suffix(const std::string& name) { return name.substr(0, name.size() - 7); }

TEST_CASE("golden models: one rank reads every byte once, no tensor is unknown") {
  const auto dirs = golden_models();
  REQUIRE(dirs.size() >= 12);
  for (const std::string& dir : dirs) {
    INFO(dir);
    const ModelConfig config = read_model_config(dir);
    const auto opened = Checkpoint::open(dir);
    const Checkpoint& checkpoint = *opened;
    CHECK_NOTHROW(check_all_known(checkpoint, config));
    CHECK(rank_bytes(checkpoint, config, {}).total(/*with_mtp=*/true).read ==
          checkpoint.total_bytes());
  }
}

TEST_CASE(
    "golden models: counted bytes are those that a source reads and holds, for 1 to 4 ranks") {
  for (const std::string& dir : golden_models()) {
    const ModelConfig config = read_model_config(dir);
    const auto opened = Checkpoint::open(dir);
    const Checkpoint& checkpoint = *opened;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (int ranks = 1; ranks <= 4; ++ranks) {
        for (int rank = 0; rank < ranks; ++rank) {
          INFO(dir << ", rank " << rank << " of " << ranks);
          test::HostDevice device;
          CheckpointSource source(checkpoint, device, dtype);
          for (const PlannedTensor& t : tensor_plan(config)) {
            const HeldSlice slice = held_slice(t, config, ranks, rank);
            if (t.cut == Cut::kExpert && slice.rows.size() * slice.cols.size() == 0) continue;
            if (t.k == 0) {
              source.vector(t.name, t.n, slice.rows);
            } else {
              source.matrix(without_suffix(t.name), t.n, t.k, slice.rows, slice.cols, t.keep_f32);
            }
          }
          CHECK_NOTHROW(check_all_used(source, config));
          RankBytes bytes =
              rank_bytes(checkpoint, config, {.ranks = ranks, .rank = rank, .dtype = dtype});
          const RankBytes::Count total = bytes.total(true);
          CHECK(total.read == source.bytes_read());
          CHECK(total.held == source.bytes_held() + bytes.derived + bytes.derived_mtp);
        }
      }
    }
  }
}

TEST_CASE("what is cut is held once over all ranks, what is not on every one") {
  for (const std::string& dir : golden_models()) {
    const ModelConfig config = read_model_config(dir);
    for (int ranks = 1; ranks <= 4; ++ranks) {
      for (const PlannedTensor& t : tensor_plan(config)) {
        INFO(dir << ": " << t.name << " over " << ranks);
        int64_t held = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const HeldSlice slice = held_slice(t, config, ranks, rank);
          held += slice.rows.size() * slice.cols.size();
        }
        const int64_t whole = t.n * std::max<int64_t>(t.k, 1);
        if (t.cut == Cut::kReplicated) {
          CHECK(held == whole * ranks);
        } else if (t.cut == Cut::kKvHeads) {
          CHECK(held >= whole);  // query heads of two ranks may share one
        } else {
          CHECK(held == whole);
        }
      }
    }
  }
}

TEST_CASE("more ranks than heads or experts are refused") {
  const std::string dir = SHOAL_SOURCE_DIR "/tests/golden/data/v3-fp8-wide-experts";
  const ModelConfig config = read_model_config(dir);
  const auto opened = Checkpoint::open(dir);
    const Checkpoint& checkpoint = *opened;
  INVALID(rank_bytes(checkpoint, config, {.ranks = 6}), "6", "5 attention heads");
  INVALID(rank_bytes(checkpoint, config, {.ranks = 5}), "5", "4 routed experts");
}

TEST_CASE("tensors that the config has no use for are refused, three by name") {
  const std::string golden = SHOAL_SOURCE_DIR "/tests/golden/data/llama-plain";
  ModelConfig config = read_model_config(golden);
  const auto opened = Checkpoint::open(golden);
  const Checkpoint& checkpoint = *opened;
  config.num_hidden_layers = 1;
  INVALID(check_all_known(checkpoint, config), "9 tensors",
          "\"model.layers.1.input_layernorm.weight\"", ", ...");

  test::TempDir dir;
  const auto open = [&](const std::vector<std::string>& names) {
    std::vector<test::StoredTensor> tensors;
    for (const auto& name : names) tensors.push_back(test::stored_f32(name, {1}, {1}));
    dir.write("model.safetensors", test::safetensors_file(tensors));
    return Checkpoint::open(dir.path());
  };
  config = read_model_config(golden);  // tied
  CHECK_NOTHROW(check_all_known(
      *open({"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"}), config));
  INVALID(check_all_known(*open({"model.layers.0.self_attn.q_proj.bias"}), config), "1 tensor ",
          "q_proj.bias");
  INVALID(check_all_known(*open({"lm_head.bias"}), config), "lm_head.bias");
  INVALID(check_all_known(*open({"model.norm.weight", "model.norm.weight_scale_inv"}), config),
          "scale_inv");
  config.tie_word_embeddings = false;
  CHECK_NOTHROW(check_all_known(*open({"lm_head.weight"}), config));
  INVALID(rank_bytes(*open({"lm_head.weight"}), config, {}), "\"model.embed_tokens.weight\"",
          "missing");
  INVALID(rank_bytes(*open({"model.embed_tokens.weight"}), config, {}), "[1]",
          "config.json asks for");
}

}  // namespace
}  // namespace shoal
