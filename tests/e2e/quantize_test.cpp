// `shoal quantize` and `shoal perplexity` as programs: a run, one that is interrupted and goes on, a full
// disk, and what they refuse.
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/server_process.h"
#include "tests/runtime/checkpoint/checkpoint_writer.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

constexpr int kSeconds = 300;  // a busy machine's
const std::string kModel = SHOAL_SOURCE_DIR "/deploy/demo-model";

std::map<std::string, std::string> contents(const std::string& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(dir)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename()] = std::string(std::istreambuf_iterator<char>(file), {});
  }
  return files;
}

// Arguments of `shoal quantize`: many small shards.
std::vector<std::string> quantize(const std::string& output, const std::string& scheme = "int4-asym-g32") {
  return {"quantize", "--model", kModel, "--output", output, "--scheme", scheme, "--max-shard-size", "1000000",
          "--threads", "1"};
}

// What a command that has to end with `code` printed to standard error.
std::string run(const std::vector<std::string>& args, int code, const std::vector<std::string>& before = {}) {
  ShoalProcess process(args, before);
  const int actual = process.wait_exit(kSeconds);
  process.wait_line("a line that nobody writes: all of them are here", kSeconds);
  INFO(process.output());
  CHECK(actual == code);
  return process.output();
}

TEST_CASE("a run that is killed goes on, and ends with the bytes of one that was not") {
  const test::TempDir dir;
  run(quantize(dir.path("whole")), 0);
  const auto whole = contents(dir.path("whole"));
  CHECK(whole.count("config.json") == 1);
  CHECK(whole.size() > 5);
  // Killed as soon as it has begun, between two shards or inside one. Again if it was done before that.
  for (int attempt = 0; attempt < 10; ++attempt) {
    fs::remove_all(dir.path("out"));
    ShoalProcess process(quantize(dir.path("out")));
    for (int i = 0; i < kSeconds * 1000 && !fs::exists(dir.path("out/shoal-quantize.json")); ++i) usleep(1000);
    process.send(SIGKILL);
    process.wait_exit(kSeconds);
    if (!fs::exists(dir.path("out/config.json"))) break;
  }
  REQUIRE_FALSE(fs::exists(dir.path("out/config.json")));
  CHECK_THAT(run({"perplexity", "--model", dir.path("out"), "--text", kModel + "/config.json"}, 2),
             Contains("no such file"));
  CHECK_THAT(run(quantize(dir.path("out"), "int8"), 2), Contains("other flags"));
  run(quantize(dir.path("out")), 0);
  CHECK(contents(dir.path("out")) == whole);
  // What is whole is no folder to write into.
  CHECK_THAT(run(quantize(dir.path("out")), 2), Contains("not empty"));
}

TEST_CASE("a calibrated folder answers; perplexity says how well") {
  const test::TempDir dir;
  dir.write("text", "What is two plus three? Two plus three is five. A sentence of some words, and one more.\n");
  std::vector<std::string> args = quantize(dir.path("out"), "int4-gptq-asym-g32");
  args.insert(args.end(), {"--calibration-tokens", "256", "--device", "cpu"});
  CHECK_THAT(run(args, 0), Contains("256 tokens of Shoal's own documentation"));
  run({"perplexity", "--model", dir.path("out"), "--text", dir.path("text"), "--json", "--device", "cpu"}, 0,
      {"sh", "-c", "exec \"$@\" > " + dir.path("json"), "sh"});
  const auto score = nlohmann::json::parse(std::ifstream(dir.path("json")));
  CHECK(score["tokens"].get<int>() > 10);
  CHECK(score["perplexity"].get<double>() > 1);
  CHECK(score["perplexity"].get<double>() == Approx(std::exp(score["mean_nll"].get<double>())));
  CHECK_THAT(run({"perplexity", "--model", dir.path("out"), "--text", dir.path("none")}, 2),
             Contains(dir.path("none")));
  args = quantize(dir.path("other"), "int4-gptq");
  args.insert(args.end(), {"--calibration", dir.path("none")});
  CHECK_THAT(run(args, 2), Contains(dir.path("none")));
}

TEST_CASE("a disk that is full: one line, no half file, and room enough finishes it") {
  const test::TempDir dir;
  fs::create_directory(dir.path("disk"));
  if (mount("none", dir.path("disk").c_str(), "tmpfs", 0, "size=2m") != 0) {
    WARN("not root: a limit on file sizes in quantize_model_test stands for the full disk");
    return;
  }
  struct Unmount {
    std::string path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } const unmount{dir.path("disk")};
  const std::string output = dir.path("disk/out");
  CHECK_THAT(run(quantize(output), 2), Contains("No space left on device"));
  CHECK_FALSE(fs::exists(output + "/config.json"));
  for (const auto& [name, text] : contents(output)) CHECK_FALSE(name.ends_with(".partial"));
  REQUIRE(mount("none", dir.path("disk").c_str(), "tmpfs", MS_REMOUNT, "size=200m") == 0);
  run(quantize(output), 0);
  CHECK(fs::exists(output + "/config.json"));
}

TEST_CASE("what cannot be written or read is one line and exit code 2") {
  const test::TempDir dir;
  CHECK_THAT(run(quantize("/proc/nowhere"), 2), Contains("/proc/nowhere"));
  CHECK_THAT(run(quantize(dir.path("out"), "int3"), 2), Contains("int4-gptq-asym-g32"));
  CHECK_THAT(run({"quantize", "--model", dir.path("none"), "--output", dir.path("out")}, 2),
             Contains(dir.path("none")));
  if (geteuid() == 0) return;  // who may write everywhere
  fs::create_directory(dir.path("mine"));
  fs::permissions(dir.path("mine"), fs::perms::owner_read | fs::perms::owner_exec);
  CHECK_THAT(run(quantize(dir.path("mine/out")), 2), Contains("Permission denied"));
}

}  // namespace
}  // namespace shoal
