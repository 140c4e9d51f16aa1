// deploy/load (Python) against a real server: the figures of load.py beside those of `shoal bench
// serve`. Its packages come from PyPI, into a folder of the build, once.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/server_process.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::string kClient = SHOAL_SOURCE_DIR "/deploy/load";
const std::string kVenv = LOAD_VENV;

bool run(const std::string& command) { return std::system(command.c_str()) == 0; }

// Python with the client's packages; empty: there is none to be had.
std::string python() {
  const std::string own = kVenv + "/bin/python";
  if (run(own + " -c 'import grpc, grpc_tools, matplotlib' 2>/dev/null")) return own;
  fs::remove_all(kVenv);
  const bool made =
      run("python3 -m venv " + kVenv + " >/dev/null 2>&1") &&
      run("timeout 240 " + own + " -m pip install --quiet --retries 1 --timeout 10 -r " + kClient +
          "/requirements.txt >/dev/null 2>&1");
  return made ? own : "";
}

TEST_CASE("load.py measures what shoal bench serve measures, and plot.py draws both") {
  const std::string interpreter = python();
  if (interpreter.empty())
    SHOAL_SKIP("no Python with grpcio, grpcio-tools and matplotlib: PyPI cannot be reached");
  const std::string& address = DemoServer::instance().address;
  std::string folder = (fs::temp_directory_path() / "shoal-client-XXXXXX").string();
  REQUIRE(mkdtemp(folder.data()) != nullptr);
  const struct Remove {
    std::string path;
    ~Remove() { fs::remove_all(path); }
  } remove{folder};
  const std::string flags =
      " --server " + address +
      " --num-prompts 24 --max-concurrency 4 --random-input-len 16 --random-output-len 12"
      " --num-turns 2 --ignore-eos --num-warmups 1 --goodput ttft:60000 tpot:60000"
      " --save-result --result-dir " +
      folder;
  REQUIRE(run(std::string(SHOAL_EXECUTABLE) + " bench serve" + flags +
              " --result-filename c.json --label c"));
  REQUIRE(run(interpreter + " " + kClient + "/load.py" + flags +
              " --result-filename p.json --label p"));
  const auto ours = Json::parse(std::ifstream(folder + "/c.json")),
             theirs = Json::parse(std::ifstream(folder + "/p.json"));
  for (const char* same :
       {"completed", "failed", "cancelled", "num_prompts", "total_input_tokens",
        "total_output_tokens", "max_concurrent_requests", "status_counts", "request_rate"}) {
    CAPTURE(same);
    CHECK(ours[same] == theirs[same]);
  }
  for (const auto& [key, value] : ours.items()) {
    CAPTURE(key);
    CHECK(theirs.contains(key));
  }
  for (const char* alike :
       {"output_throughput", "request_goodput", "mean_e2el_ms", "median_tpot_ms"}) {
    CAPTURE(alike);
    const double ratio = ours[alike].get<double>() / theirs[alike].get<double>();
    // The machine may have been busy for one of the two; seconds taken for milliseconds would be
    // seen.
    CHECK((ratio > 0.01 && ratio < 100));
  }
  REQUIRE(run(interpreter + " " + kClient + "/load.py --server " + address +
              " --backend shoal-chat --num-prompts 12 --random-input-len 8 --random-output-len 30 "
              "--request-rate 100"
              " --cancel-fraction 0.5 --deadline-ms 20:60000 --random-prefix-len 4 >/dev/null"));
  CHECK_FALSE(run(interpreter + " " + kClient +
                  "/load.py --server 127.0.0.1:1 --num-prompts 1 2>/dev/null"));
  const std::string plot = interpreter + " " + kClient + "/plot.py " + folder;
  REQUIRE(run(plot + "/c.json " + folder + "/p.json --out " + folder + "/curves.png"));
  REQUIRE(run(plot + "/c.json --series --out " + folder + "/series.png"));
  CHECK(fs::file_size(folder + "/curves.png") > 10000);
  CHECK(fs::file_size(folder + "/series.png") > 10000);
}

}  // namespace
}  // namespace shoal
