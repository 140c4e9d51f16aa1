// Embedding and output head, cut over the ranks that the test runs in.
#include "parallel/embedding.h"

#include <catch2/catch.hpp>

#include "tests/parallel/support/device_values.h"
#include "tests/parallel/support/fake_weights.h"
#include "tests/parallel/support/values.h"
#include "tests/parallel/support/world.h"

namespace shoal::test {
namespace {

constexpr int64_t kHidden = 12;

// Even and uneven vocabularies, one in units of 128, and one that leaves ranks without rows.
struct Vocabulary {
  int64_t rows, unit;
};
constexpr Vocabulary kVocabularies[] = {{64, 1}, {37, 1}, {640, 128}, {2, 1}};

TEST_CASE("embedding: every rank gets the rows of the whole table") {
  for (const Vocabulary& vocab : kVocabularies) {
    FakeWeights weights(*world().device);
    weights.add_f32("embed", vocab.rows, kHidden);
    const ShardTable ranges = split_evenly(vocab.rows, world().size(), vocab.unit);
    VocabParallelEmbedding embedding;
    embedding.load(weights, "embed", vocab.rows, kHidden, ranges, world().rank());
    CHECK(weights.elements_read() == ranges[world().rank()].size() * kHidden);
    for (int64_t tokens : {0, 1, 9}) {
      CAPTURE(vocab.rows, tokens);
      std::vector<int32_t> ids(tokens);
      for (int64_t t = 0; t < tokens; ++t) {
        ids[t] = static_cast<int32_t>(integer_of(5, t, vocab.rows));
      }
      if (tokens > 1) ids.back() = static_cast<int32_t>(vocab.rows - 1);
      ExecContext ctx = world().context();
      Workspace::Scope scope(ctx.workspace);
      const OnDevice<int32_t> device_ids(ids, {tokens});
      const Tensor out = embedding.forward(ctx, device_ids);
      const std::vector<float> rows = to_host<float>(out);
      REQUIRE((out.dim(0) == tokens && out.dim(1) == kHidden));
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t j = 0; j < kHidden; ++j) {
          REQUIRE(rows[t * kHidden + j] == weights.value("embed", ids[t], j));
        }
      }
    }
  }
}

TEST_CASE("embedding: rows of a table in FP8 blocks that ranks cut") {
  constexpr int64_t kRows = 200, kBlock = 128;
  FakeWeights weights(*world().device);
  weights.add_fp8("embed", kRows, kHidden, kBlock);
  VocabParallelEmbedding embedding;
  embedding.load(weights, "embed", kRows, kHidden, split_evenly(kRows, world().size()),
                 world().rank());
  const std::vector<int32_t> ids = {0, 127, 128, 199, 66};
  ExecContext ctx = world().context();
  Workspace::Scope scope(ctx.workspace);
  const OnDevice<int32_t> device_ids(ids, {5});
  const std::vector<float> rows = to_host<float>(embedding.forward(ctx, device_ids));
  REQUIRE(rows.size() == ids.size() * kHidden);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t j = 0; j < kHidden; ++j) {
      CAPTURE(t, j);
      CHECK(rows[t * kHidden + j] == static_cast<float>(weights.value("embed", ids[t], j)));
    }
  }
}

// The same rows times the same input on one rank, whatever the cut: equal in every bit.
void check_head(const ParallelLmHead& head, FakeWeights& weights, const std::string& name,
                int64_t vocab) {
  for (int64_t tokens : {0, 1, 2, 7}) {
    CAPTURE(name, vocab, tokens);
    const OnDevice<float> x(random_values(11, tokens * kHidden), {tokens, kHidden});
    ExecContext ctx = world().context();
    Workspace::Scope scope(ctx.workspace);
    const Tensor logits = head.forward(ctx, x);
    if (world().rank() != 0) {
      REQUIRE(!logits.defined());
      continue;
    }
    REQUIRE((logits.rank == 2 && logits.dim(0) == tokens && logits.dim(1) == vocab));
    const OnDevice<float> expected({tokens, vocab});
    ctx.ops.linear(x, weights.matrix(name, vocab, kHidden, {0, vocab}, {0, kHidden}, false), Tensor(),
                   expected);
    REQUIRE(to_host<float>(logits) == expected.host());
  }
}

TEST_CASE("head: rank 0 gets the logits of the whole vocabulary") {
  for (const Vocabulary& vocab : kVocabularies) {
    FakeWeights weights(*world().device);
    weights.add_f32("lm_head", vocab.rows, kHidden);
    ParallelLmHead head;
    head.load(weights, "lm_head", vocab.rows, kHidden,
              split_evenly(vocab.rows, world().size(), vocab.unit), world().rank());
    check_head(head, weights, "lm_head", vocab.rows);
  }
}

TEST_CASE("head: tied to the embedding, without reading again") {
  FakeWeights weights(*world().device);
  weights.add_f32("embed", 37, kHidden);
  const ShardTable ranges = split_evenly(37, world().size());
  VocabParallelEmbedding embedding;
  embedding.load(weights, "embed", 37, kHidden, ranges, world().rank());
  const int64_t read = weights.elements_read();
  ParallelLmHead head;
  head.tie(embedding, ranges);
  CHECK(weights.elements_read() == read);
  check_head(head, weights, "embed", 37);
}

}  // namespace
}  // namespace shoal::test
