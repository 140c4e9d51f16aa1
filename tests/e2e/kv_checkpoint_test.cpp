// A server that keeps the KV of prompts in files: what the next one computes, and what is refused.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <chrono>
#include <filesystem>
#include <thread>

#include "runtime/cache/page_key.h"
#include "shoal/v1/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"
#include "tests/support/skip.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
constexpr int kSeconds = 120;

struct Directory {
  Directory() : path(fs::temp_directory_path() / ("shoal-e2e-kv-" + std::to_string(getpid()))) {
    fs::remove_all(path);
  }
  ~Directory() { fs::remove_all(path); }
  fs::path path;
};

struct Server {
  explicit Server(const Directory& directory)
      : process({"serve", "--model", demo_model(), "--port", "0", "--tensor-parallel-size", "2",
                 "--kv-checkpoint-dir", directory.path.string()}) {
    const std::string ready = process.wait_line("Ready: ", kSeconds);
    INFO(process.output());
    REQUIRE_FALSE(ready.empty());
    const size_t begin = ready.find("--server ") + 9;
    const std::string address = ready.substr(begin, ready.find(' ', begin) - begin);
    stub = v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  v1::CompleteResponse complete(const std::string& prompt) {
    v1::CompleteRequest request;
    request.set_text(prompt);
    request.set_stream(false);
    request.mutable_sampling()->set_max_tokens(12);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_ignore_eos(true);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(kSeconds));
    const auto reader = stub->Complete(&context, request);
    v1::CompleteResponse response;
    REQUIRE(reader->Read(&response));
    REQUIRE(reader->Finish().ok());
    return response;
  }
  // Statistics come once a second, and when the last request has ended.
  v1::GetStatusResponse status() {
    grpc::ClientContext context;
    v1::GetStatusResponse status;
    REQUIRE(stub->GetStatus(&context, {}, &status).ok());
    return status;
  }
  ShoalProcess process;
  std::unique_ptr<v1::Inference::Stub> stub;
};

std::string long_prompt() {
  std::string text;
  for (int i = 0; i < 150; ++i) text += "Line " + std::to_string(i) + " of a long text. ";
  return text;
}

TEST_CASE("a long shared prompt after a restart is read, not computed") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  const Directory directory;
  std::string text;
  int prompt_tokens = 0;
  {
    Server server(directory);
    const v1::CompleteResponse answer = server.complete(long_prompt());
    text = answer.outputs(0).text();
    prompt_tokens = answer.usage().prompt_tokens();
    CHECK(prompt_tokens > 800);
    CHECK(answer.usage().cached_tokens() == 0);
    CHECK(server.status().prompt_tokens() == prompt_tokens);

    ShoalProcess second({"serve", "--model", demo_model(), "--port", "0", "--kv-checkpoint-dir",
                         directory.path.string()});
    CHECK(second.wait_exit(kSeconds) == 2);
    CHECK_THAT(second.wait_line("shoal: error: ", kSeconds),
               Contains(directory.path.string()) && Contains("another server"));

    server.process.send(SIGTERM);
    CHECK(server.process.wait_exit(kSeconds) == 0);
  }
  Server server(directory);
  const v1::CompleteResponse again = server.complete(long_prompt());
  CHECK(again.outputs(0).text() == text);
  CHECK(again.usage().cached_tokens() > prompt_tokens - 17);
  const v1::GetStatusResponse status = server.status();
  CHECK(status.prompt_tokens() == prompt_tokens - again.usage().cached_tokens());
  CHECK(status.pages_loaded() == again.usage().cached_tokens() / 16);
  CHECK(status.pages_restored() == status.pages_loaded());
  // The ranks die and are started again: their directory is free, and their pages are there.
  kill(descendants(server.process.pid()).back(), SIGKILL);
  const v1::CompleteResponse after = server.complete(long_prompt());
  CHECK(after.outputs(0).text() == text);
}

TEST_CASE("a directory that cannot be used is refused in one line, before the model is loaded") {
  if (!page_keys_supported()) SHOAL_SKIP("built without OpenSSL");
  ShoalProcess process({"serve", "--model", demo_model(), "--port", "0", "--kv-checkpoint-dir",
                        demo_model() + "/config.json"});
  CHECK(process.wait_exit(kSeconds) == 2);
  CHECK_THAT(process.wait_line("shoal: error: ", kSeconds), Contains("--kv-checkpoint-dir"));
}

}  // namespace
}  // namespace shoal
