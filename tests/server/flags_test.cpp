#include "server/flags.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstdlib>

#include "server/launcher.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;

struct ServeLine {
  ServeLine() {
    unsetenv("SHOAL_DEVICE");  // CTest sets it for commands that tests start
    add_engine_flags(app, options.engine);
    add_serve_flags(app, options);
    add_environment_twins(app);
  }
  void parse(std::vector<const char*> words) {
    words.insert(words.begin(), "shoal");
    std::vector<std::string> args = normalise_args(static_cast<int>(words.size()), words.data());
    std::reverse(args.begin(), args.end());
    app.parse(std::move(args));
  }
  ServeOptions options;
  CLI::App app;
};

struct Variable {
  Variable(const char* name, const char* value) : name(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name); }
  const char* name;
};

TEST_CASE("flags have vLLM's names and spellings", "[flags]") {
  ServeLine line;
  line.parse({"--model", "org/name", "-tp", "3", "--max_model_len=4096",
              "--no-enable-prefix-caching", "--kv-cache-memory", "2GiB", "--host", "0.0.0.0",
              "--enable-dp-attention"});
  CHECK(line.options.engine.model == "org/name");
  CHECK(line.options.engine.tensor_parallel_size == 3);
  CHECK(line.options.engine.max_model_len == 4096);
  CHECK_FALSE(line.options.engine.enable_prefix_caching);
  CHECK(line.options.engine.dp_attention);
  CHECK(line.options.engine.kv_cache_memory_bytes == int64_t{2} << 30);
  CHECK(line.options.host == "0.0.0.0");
}

TEST_CASE("the model may be the first word", "[flags]") {
  ServeLine line;
  line.parse({"some/folder", "--port", "0"});
  CHECK(line.options.engine.model == "some/folder");
}

TEST_CASE("each flag has a variable, and the flag wins", "[flags]") {
  const Variable port("SHOAL_PORT", "1234"), seqs("SHOAL_MAX_NUM_SEQS", "7"),
      model("SHOAL_MODEL", "folder"), caching("SHOAL_ENABLE_PREFIX_CACHING", "false");
  ServeLine line;
  line.parse({"--port", "99"});
  CHECK(line.options.port == 99);
  CHECK(line.options.engine.max_num_seqs == 7);
  CHECK(line.options.engine.model == "folder");
  CHECK_FALSE(line.options.engine.enable_prefix_caching);
}

// With everything at its default, too: an empty value must not swallow the word after it.
TEST_CASE("ranks read what serve hands to them", "[flags]") {
  for (const bool given : {false, true}) {
    EngineOptions o;
    o.model = "folder";
    if (given) {
      o.device = "cuda";
      o.gemm_cache = "gemm.json";
      o.enforce_eager = true;
      o.async_scheduling = false;
      o.gpu_memory_utilization = 0.5;
      o.dp_attention = true;
      o.enable_prefix_caching = false;
      o.kv_cache_memory_bytes = int64_t{3} << 30;
    }
    std::vector<std::string> words = rank_command(o, "/tmp/socket");
    REQUIRE(words.size() > 2);
    EngineOptions read;
    std::string socket;
    CLI::App app;
    add_engine_flags(app, read);
    app.add_option("--socket", socket);
    std::vector<std::string> args(words.begin() + 2, words.end());  // after the program and "rank"
    std::reverse(args.begin(), args.end());
    app.parse(std::move(args));
    CHECK(rank_command(read, socket) == words);
    CHECK(read.gemm_cache == o.gemm_cache);
    CHECK(read.enforce_eager == o.enforce_eager);
    CHECK(read.async_scheduling == o.async_scheduling);
    CHECK(socket == "/tmp/socket");
  }
}

TEST_CASE("variables that no flag reads are found", "[flags]") {
  const Variable known("SHOAL_PORT", "1"), unknown("SHOAL_PROT", "1");
  ServeLine line;
  CHECK(unknown_environment(line.app) == std::vector<std::string>{"SHOAL_PROT"});
}

TEST_CASE("what was given is listed, without secrets", "[flags]") {
  ServeLine line;
  line.parse({"--model", "m", "--api-key", "hush", "--port", "5"});
  std::string all;
  for (const std::string& arg : non_default_args(line.app)) all += arg + " ";
  CHECK(all == "--model=m --port=5 --api-key=*** ");
  CHECK_THAT(print_config(line.app),
             Contains("--port=5\n") && Contains("--max-num-seqs=64\n") && !Contains("hush"));
}

TEST_CASE("a wrong flag is refused", "[flags]") {
  const auto bad = GENERATE(values<std::vector<const char*>>({{"--model", "m", "--dtype", "int3"},
                                                              {"--model", "m", "--port", "70000"},
                                                              {"--model", "m", "-tp", "0"},
                                                              {"--model", "m", "--no-such-flag"},
                                                              {}}));
  ServeLine line;
  CHECK_THROWS_AS(line.parse(bad), CLI::ParseError);
}

}  // namespace
}  // namespace shoal
