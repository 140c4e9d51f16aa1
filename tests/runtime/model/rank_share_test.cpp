// Each rank reads only its own byte ranges of the checkpoint and holds only its own weights: exactly
// what rank_bytes() says from the headers, on every golden checkpoint and the demo model.
#include <catch2/catch.hpp>
#include <filesystem>

#include "runtime/checkpoint/rank_bytes.h"
#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

std::vector<std::string> checkpoints() {
  const std::string root = SHOAL_SOURCE_DIR;
  std::vector<std::string> dirs{root + "/deploy/demo-model"};
  for (const auto& entry : std::filesystem::directory_iterator(root + "/tests/golden/data")) {
    dirs.push_back(entry.path());
  }
  return dirs;
}

TEST_CASE("a rank reads and holds its share and no more") {
  const int ranks = rank_runtime().size();
  for (const std::string& dir : checkpoints()) {
    for (bool dp_attention : {false, true}) {
      for (bool mtp : {false, true}) {
        LoadOptions options;
        options.model_dir = dir;
        options.dp_attention = dp_attention;
        options.load_mtp = mtp;
        options.max_model_len = 32;
        options.kv_cache_tokens = 32;
        const auto model = load_model(rank_runtime(), options);
        const int64_t rope_dim = model->config.is_mla() ? model->config.qk_rope_head_dim
                                                         : model->config.head_dim;
        const uint64_t rope_table = 32 * rope_dim * sizeof(float);
        const RankBytes::Count share =
            rank_bytes(*model->checkpoint, model->config,
                       {ranks, rank_runtime().rank(), dp_attention, model->dtype})
                .total(mtp);
        INFO(dir << ", rank " << rank_runtime().rank() << " of " << ranks << ", dp attention "
                 << dp_attention << ", mtp " << mtp);
        CHECK(model->source->bytes_read() == share.read);
        CHECK(model->source->bytes_held() == share.held + rope_table);
        // Routed experts are nine tenths of a real model: nobody reads the whole file.
        if (ranks > 1 && model->config.n_routed_experts > 0 && !dp_attention) {
          CHECK(model->source->bytes_read() < model->checkpoint->total_bytes() * 3 / 4);
        }
      }
    }
  }
}

}  // namespace
}  // namespace shoal
