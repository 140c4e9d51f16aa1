// Tests 14 and 15 at the real process: checkpoints that are damaged end the start with one line that names the file,
// and exit code 2. Formats byte by byte are in tests/runtime/checkpoint and tests/fuzz.
#include <catch2/catch.hpp>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "tests/faults/server.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

const std::string kShard = "model-00002-of-00002.safetensors";
const std::string kIndex = "model.safetensors.index.json";

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

void replace(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = read(path);
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  write(path, text.replace(at, from.size(), to));
}

class Copy {
 public:
  Copy() : path(fs::temp_directory_path() / ("shoal-files-" + std::to_string(getpid()))) {
    fs::remove_all(path);
    fs::copy(demo_model(), path, fs::copy_options::recursive);
  }
  ~Copy() { fs::remove_all(path); }
  const fs::path path;
};

TEST_CASE("14, 15: a damaged checkpoint is refused in one line that names what is wrong") {
  struct Row {
    std::string names;
    std::function<void(const fs::path&)> damage;
  };
  const std::vector<Row> table = {
      {kShard, [](const fs::path& p) { fs::remove(p / kShard); }},
      {kShard, [](const fs::path& p) { write(p / kShard, ""); }},
      {kShard, [](const fs::path& p) { fs::resize_file(p / kShard, 7); }},
      {kShard, [](const fs::path& p) { fs::resize_file(p / kShard, 5000); }},
      {kShard, [](const fs::path& p) { fs::resize_file(p / kShard, fs::file_size(p / kShard) - 1); }},
      {kShard, [](const fs::path& p) { fs::resize_file(p / kShard, fs::file_size(p / kShard) + 1); }},
      {kShard, [](const fs::path& p) { fs::remove(p / kShard); fs::create_directory(p / kShard); }},
      {kShard, [](const fs::path& p) { fs::remove(p / kShard); fs::create_symlink("/etc/passwd", p / kShard); }},
      {kShard, [](const fs::path& p) { replace(p / kShard, "\"dtype\":\"F8_E4M3\"", "\"dtype\":\"F9_E4M3\""); }},
      {kShard, [](const fs::path& p) { replace(p / kShard, "\"shape\":[", "\"shape\":[9"); }},
      {kIndex, [](const fs::path& p) { replace(p / kIndex, kShard, "../../../etc/passwd"); }},
      {kIndex, [](const fs::path& p) { replace(p / kIndex, kShard, "/etc/passwd"); }},
      {kIndex, [](const fs::path& p) { fs::resize_file(p / kIndex, 1000); }},
      {"model.", [](const fs::path& p) { replace(p / kIndex, kShard, "model-00001-of-00002.safetensors"); }},
      {"config.json", [](const fs::path& p) { fs::remove(p / "config.json"); }},
      {"config.json", [](const fs::path& p) { replace(p / "config.json", "256", "257"); }},
      {"config.json", [](const fs::path& p) { replace(p / "config.json", "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\""); }},
      {"model.", [](const fs::path& p) { replace(p / "config.json", "\"vocab_size\": 1536", "\"vocab_size\": 1537"); }},
      {"tokenizer.json", [](const fs::path& p) { fs::remove(p / "tokenizer.json"); }},
      {"tokenizer.json", [](const fs::path& p) { fs::resize_file(p / "tokenizer.json", 40'000); }},
      {"generation_config.json", [](const fs::path& p) { write(p / "generation_config.json", "{\"top_p\": 7}"); }},
  };
  for (size_t i = 0; i < table.size(); ++i) {
    const Copy copy;
    table[i].damage(copy.path);
    ShoalProcess process({"serve", "--model", copy.path.string(), "--port", "0"});
    const int code = process.wait_exit(kPatienceSeconds);
    const std::string error = process.wait_line("shoal: error: ", 5);
    INFO("row " << i << "\n" << process.output());
    CHECK(code == 2);
    CHECK_THAT(error, Contains(table[i].names));
    CHECK(error.size() < 1000);
    CHECK(process.output().find("root:") == std::string::npos);  // of /etc/passwd
  }
}

TEST_CASE("15: a file that nobody asks for is left alone; weights that change under a running server harm nobody") {
  const Copy copy;
  write(copy.path / "model-00003-of-00002.safetensors", "not looked at");
  const FaultServer server({}, copy.path.string());
  const auto client = server.connect();
  const CallResult before = client->complete(greedy({300, 301}, 50));
  CHECK(before.code == Code::kOk);
  fs::resize_file(copy.path / kShard, 100);
  CHECK(client->complete(greedy({300, 301}, 50)).token_ids == before.token_ids);
  // When its ranks die they cannot be started from what is left: that is said, and the server ends.
  const auto stream = client->open(greedy({300, 301}, 2000));
  v1::CompleteResponse first;
  REQUIRE(stream->read(&first));
  kill(server.rank_pids()[0], SIGKILL);
  const CallResult result = stream->finish();
  CHECK(result.code == Code::kUnavailable);
  CHECK_THAT(result.message, Contains(kShard));
}

}  // namespace
}  // namespace shoal
