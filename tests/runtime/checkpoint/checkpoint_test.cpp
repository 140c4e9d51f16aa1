// A checkpoint folder: single file, shards, and every way in which an index can lie.
#include "runtime/checkpoint/hf_checkpoint.h"

#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

constexpr const char* kIndex = "model.safetensors.index.json";

std::string shard(const std::vector<std::string>& names) {
  std::vector<test::StoredTensor> tensors;
  for (const auto& name : names) tensors.push_back(test::stored_f32(name, {1}, {1.0f}));
  return test::safetensors_file(tensors);
}

std::string index_of(const std::string& map) {
  return "{\"metadata\":{\"total_size\":12},\"weight_map\":{" + map + "}}";
}

TEST_CASE("a single file and shards give the same tensors") {
  const TempDir one, two;
  one.write("model.safetensors", shard({"a", "b", "c"}));
  two.write("x-1.safetensors", shard({"a", "c"}));
  two.write("x-2.safetensors", shard({"b"}));
  two.write(
      kIndex,
      index_of("\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\",\"c\":\"x-1.safetensors\""));
  for (const TempDir* dir : {&one, &two}) {
    const auto opened = Checkpoint::open(dir->path());
    const Checkpoint& checkpoint = *opened;
    CHECK(checkpoint.names() == std::vector<std::string>{"a", "b", "c"});
    CHECK(checkpoint.total_bytes() == 12);
    CHECK(checkpoint.has("b"));
    CHECK(checkpoint.vector("b", 1)->n() == 1);
    CHECK_FALSE(checkpoint.has("d"));
    REQUIRE(checkpoint.file_tensors().size() == 3);
    CHECK(checkpoint.file_tensors()[1].shape == std::vector<int64_t>{1});
    CHECK(checkpoint.quantization().empty());
  }
  CHECK(Checkpoint::open(two.path())->num_files() == 2);
}

TEST_CASE("a folder without weights says what it looked for") {
  const TempDir dir;
  INVALID(Checkpoint::open(dir.path("none")), "none: No such file");
  INVALID(Checkpoint::open(dir.path()), "model.safetensors", kIndex);
  dir.write("file", "x");
  INVALID(Checkpoint::open(dir.path("file")), "not a folder");
  dir.write("pytorch_model.bin", "x");
  INVALID(Checkpoint::open(dir.path()), "pytorch_model.bin is not read");
  dir.write("model.safetensors", shard({}));
  INVALID(Checkpoint::open(dir.path()), "holds no tensors");
}

TEST_CASE("a shard that is missing is named") {
  const TempDir dir;
  dir.write("x-1.safetensors", shard({"a"}));
  dir.write(kIndex, index_of("\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\""));
  INVALID(Checkpoint::open(dir.path()), "x-2.safetensors", "missing", kIndex);
}

TEST_CASE("every named tensor is in exactly the shard that the index says") {
  const TempDir dir;
  dir.write("x-1.safetensors", shard({"a"}));
  dir.write("x-2.safetensors", shard({"b"}));
  dir.write(
      kIndex,
      index_of("\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\",\"c\":\"x-2.safetensors\""));
  INVALID(Checkpoint::open(dir.path()), kIndex, "\"c\"", "x-2.safetensors");
  dir.write(kIndex, index_of("\"a\":\"x-1.safetensors\",\"c\":\"x-2.safetensors\""));
  INVALID(Checkpoint::open(dir.path()), "x-2.safetensors", "\"b\"", "does not name");
  dir.write(kIndex, index_of("\"a\":\"x-2.safetensors\",\"b\":\"x-1.safetensors\""));
  INVALID(Checkpoint::open(dir.path()), "which", "says is in");
  dir.write("x-2.safetensors", shard({"a", "b"}));
  dir.write(kIndex, index_of("\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\""));
  INVALID(Checkpoint::open(dir.path()), "x-2.safetensors", "\"a\"", "x-1.safetensors");
}

TEST_CASE("files that the index does not name are not looked at") {
  const TempDir dir;
  dir.write("x-1.safetensors", shard({"a"}));
  dir.write("model.safetensors", "garbage");
  dir.write("x-2.safetensors", "garbage");
  dir.write(kIndex, index_of("\"a\":\"x-1.safetensors\""));
  CHECK(Checkpoint::open(dir.path())->names().size() == 1);
}

TEST_CASE("a damaged shard is named") {
  const TempDir dir;
  dir.write("x-1.safetensors", shard({"a"}));
  dir.write("x-2.safetensors", shard({"b"}).substr(0, 20));
  dir.write(kIndex, index_of("\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\""));
  INVALID(Checkpoint::open(dir.path()), "x-2.safetensors", "truncated");
}

TEST_CASE("shard names that lead out of the folder are refused") {
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "../../etc/passwd", "a/x.safetensors", "..",
        ".safetensors", "", "x.bin", "a\\\\x.safetensors", "x\\u0000.safetensors"}) {
    INFO(name);
    INVALID(parse_checkpoint_index(index_of(std::string("\"a\":\"") + name + "\""), "i.json"),
            "i.json", "\"a\"", "plain name");
  }
  INVALID(
      parse_checkpoint_index(index_of("\"a\":\"" + std::string(300, 'x') + ".safetensors\""), "i"),
      "plain name");
}

TEST_CASE("index text that is not an index is refused") {
  for (const char* text :
       {"", "{", "[]", "{}", "null", "{\"weight_map\":{}}", "{\"weight_map\":[]}",
        "{\"weight_map\":\"x\"}", "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":{\"a\":null}}",
        "{\"weight_map\":{\"a\":{}}}", "{\"weight_map\":{\"a\":[\"x.safetensors\"]}}",
        "{\"metadata\":{\"weight_map\":{\"a\":\"x.safetensors\"}}}",
        "[{\"weight_map\":{\"a\":\"x.safetensors\"}}]"}) {
    INFO(text);
    INVALID(parse_checkpoint_index(text, "i.json"), "i.json");
  }
  INVALID(parse_checkpoint_index(index_of("\"a\":\"x.safetensors\",\"a\":\"x.safetensors\""), "i"),
          "\"a\" twice");
  INVALID(parse_checkpoint_index(
              "{\"weight_map\":{\"a\":\"x.safetensors\"},\"weight_map\":{\"a\":\"x.safetensors\"}}",
              "i"),
          "twice");
  INVALID(parse_checkpoint_index("{\"m\":" + std::string(100000, '['), "i"), "nested");
  CHECK(parse_checkpoint_index(
            "{\"metadata\":{\"a\":[1,{\"b\":null}]},\"weight_map\":{\"a\":\"x.safetensors\"}}", "i")
            .at("a") == "x.safetensors");
}

TEST_CASE("symbolic links: into the Hugging Face cache's blobs yes, elsewhere no") {
  const TempDir cache;
  const std::string snapshot = "models--o--n/snapshots/c0ffee";
  cache.write("models--o--n/blobs/1234", shard({"a"}));
  cache.write("elsewhere/m", shard({"a"}));
  fs::create_directories(cache.path(snapshot));
  fs::create_symlink("../../blobs/1234", cache.path(snapshot + "/model.safetensors"));
  CHECK(Checkpoint::open(cache.path(snapshot))->names().size() == 1);
  // A link to the folder itself is the user's own.
  fs::create_directory_symlink(cache.path(snapshot), cache.path("link"));
  CHECK(Checkpoint::open(cache.path("link"))->names().size() == 1);

  fs::remove(cache.path(snapshot + "/model.safetensors"));
  fs::create_symlink(cache.path("elsewhere/m"), cache.path(snapshot + "/model.safetensors"));
  INVALID(Checkpoint::open(cache.path(snapshot)), "symbolic link", "elsewhere/m");
  fs::remove(cache.path(snapshot + "/model.safetensors"));
  fs::create_symlink("../../blobs/gone", cache.path(snapshot + "/model.safetensors"));
  INVALID(Checkpoint::open(cache.path(snapshot)), "model.safetensors: No such file");
  // blobs of something that is not a snapshot
  cache.write("a/blobs/m", shard({"a"}));
  fs::create_directories(cache.path("a/b/c"));
  fs::create_symlink("../../blobs/m", cache.path("a/b/c/model.safetensors"));
  INVALID(Checkpoint::open(cache.path("a/b/c")), "symbolic link");
}

}  // namespace
}  // namespace shoal
