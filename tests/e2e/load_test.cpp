// `shoal bench serve` against a real server, and models without weights.
#include <fmt/format.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/server_process.h"
#include "tests/support/npy.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using Json = nlohmann::json;

constexpr int kSeconds = 120;

struct Folder {
  Folder() {
    path = (fs::temp_directory_path() / "shoal-load-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) throw std::runtime_error("mkdtemp");
  }
  ~Folder() { fs::remove_all(path); }
  std::string path;
};

int shoal(const std::vector<std::string>& args, std::string* said = nullptr) {
  ShoalProcess process(args);
  const int code = process.wait_exit(kSeconds);
  process.wait_line("\n", 5);  // until its output ends
  if (said != nullptr) *said = process.output();
  INFO(process.output());
  return code;
}

std::vector<std::string> bench(const std::string& address, const std::vector<std::string>& more) {
  std::vector<std::string> args = {"bench",
                                   "serve",
                                   "--server",
                                   address,
                                   "--random-input-len",
                                   "12",
                                   "--random-output-len",
                                   "8",
                                   "--ignore-eos"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

TEST_CASE("bench serve measures a server, sweeps, and writes what it found") {
  const std::string& address = DemoServer::instance().address;
  const Folder folder;
  std::string said;
  REQUIRE(shoal(bench(address, {"--concurrencies", "1,4", "--num-prompts", "12", "--num-warmups",
                                "2", "--random-range-ratio", "0.5", "--goodput", "ttft:60000",
                                "tpot:60000", "--save-result", "--result-dir", folder.path,
                                "--result-filename", "r.json"}),
                &said) == 0);
  CHECK_THAT(said, Contains("us of CPU per token"));
  for (const int concurrency : {1, 4}) {
    const auto json = Json::parse(
        std::ifstream(fmt::format("{}/r-infqps-concurrency{}.json", folder.path, concurrency)));
    CHECK(json["completed"] == 12);
    CHECK(json["failed"] == 0);
    CHECK(json["max_concurrent_requests"] == concurrency);
    CHECK(json["request_goodput"] == json["request_throughput"]);
    CHECK(json["mean_ttft_ms"] > 0);
    CHECK(json["p99_e2el_ms"] >= json["median_e2el_ms"]);
    const double output = json["total_output_tokens"];
    CHECK(output >= 12 * 4);
    CHECK(output <= 12 * 12);
    double streamed = 0;
    for (const Json& second : json["series"]) streamed += second["output_tokens"].get<double>();
    CHECK(streamed == output);
  }
}

TEST_CASE("bench serve says what went wrong") {
  const std::string& address = DemoServer::instance().address;
  std::string said;
  CHECK(shoal(bench("127.0.0.1:1", {"--num-prompts", "1"}), &said) == 2);
  CHECK_THAT(said, Contains("no server answers at 127.0.0.1:1"));
  CHECK(shoal(bench(address, {"--duration", "1"}), &said) == 2);
  CHECK_THAT(said, Contains("--duration 1"));
  // A deadline that nothing meets: no request is answered.
  CHECK(shoal(bench(address, {"--num-prompts", "5", "--deadline-ms", "0.001"}), &said) == 1);
  CHECK_THAT(said, Contains("DEADLINE_EXCEEDED: 5 requests"));
  CHECK(shoal({"bench"}, &said) == 2);
}

TEST_CASE("made-up weights give the same logits on one rank and on two") {
  const std::string scheme = GENERATE("none", "int4");
  CAPTURE(scheme);
  const Folder folder;
  fs::copy_file(SHOAL_SOURCE_DIR "/tests/golden/data/v3/config.json", folder.path + "/config.json");
  std::vector<NpyArray> logits;
  for (const char* ranks : {"1", "2"}) {
    const std::string out = folder.path + "/" + ranks + ".npy";
    REQUIRE(shoal({"logits", "--model", folder.path, "--load-format", "dummy", "--dtype", "float32",
                   "--quantization", scheme, "--tensor-parallel-size", ranks, "--tokens",
                   "5,6,7,8,9,10,11", "--out", out}) == 0);
    logits.push_back(read_npy(out));
  }
  REQUIRE(logits[0].rows == 7);
  REQUIRE(logits[1].values.size() == logits[0].values.size());
  double squares = 0, largest = 0;
  for (size_t i = 0; i < logits[0].values.size(); ++i) {
    REQUIRE(std::isfinite(logits[0].values[i]));
    squares += logits[0].values[i] * logits[0].values[i];
    largest = std::max(largest, std::fabs(double{logits[0].values[i]} - logits[1].values[i]));
  }
  CHECK(largest < 1e-3);
  // Not all alike, and no token beyond the others' reach.
  CHECK(std::sqrt(squares / static_cast<double>(logits[0].values.size())) == Approx(1).margin(0.7));
}

TEST_CASE("a server of made-up weights needs a config and a tokenizer, and answers") {
  const Folder folder;
  fs::copy_file(SHOAL_SOURCE_DIR "/deploy/demo-model/config.json", folder.path + "/config.json");
  std::string said;
  CHECK(shoal({"serve", "--model", folder.path, "--load-format", "dummy", "--port", "0"}, &said) ==
        2);
  CHECK_THAT(said, Contains("tokenizer.json is missing"));
  CHECK(shoal({"plan", "--model", folder.path, "--load-format", "dummy"}) == 0);
  fs::copy_file(SHOAL_SOURCE_DIR "/deploy/demo-model/tokenizer.json",
                folder.path + "/tokenizer.json");
  ShoalProcess server({"serve", "--model", folder.path, "--load-format", "dummy", "--quantization",
                       "int8", "--port", "0"});
  const std::string ready = server.wait_line("Ready: ", kSeconds);
  INFO(server.output());
  const size_t begin = ready.find("--server ");
  REQUIRE(begin != std::string::npos);
  std::string address = ready.substr(begin + 9);
  address = address.substr(0, address.find(' '));
  CHECK(shoal(bench(address, {"--num-prompts", "6", "--num-turns", "2"}), &said) == 0);
  CHECK_THAT(said, Contains("this client"));
}

}  // namespace
}  // namespace shoal
