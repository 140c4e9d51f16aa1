// The demo model's examination, asked of the real server: 400 questions over gRPC, many at a time, of FP8
// weights on two ranks. What a wrong kernel, template, scale or shard would cost shows here as answers.
#include <grpcpp/grpcpp.h>
#include <catch2/catch.hpp>

#include <atomic>
#include <cctype>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "shoal/v1/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace shoal {
namespace {

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// `expected` in `content`, as whole words.
bool contains_words(const std::string& content, const std::string& expected) {
  for (size_t at = content.find(expected); at != std::string::npos;
       at = content.find(expected, at + 1)) {
    const size_t end = at + expected.size();
    if ((at == 0 || !is_word(content[at - 1])) && (end == content.size() || !is_word(content[end]))) {
      return true;
    }
  }
  return false;
}

// The last integer; " - " is an operator and not a sign.
std::string last_number(const std::string& content) {
  size_t end = content.find_last_of("0123456789");
  if (end == std::string::npos) return "";
  size_t begin = end;
  while (begin > 0 && std::isdigit(static_cast<unsigned char>(content[begin - 1]))) --begin;
  if (begin > 0 && content[begin - 1] == '-') --begin;
  return content.substr(begin, end + 1 - begin);
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \n");
  return begin == std::string::npos ? ""
                                    : text.substr(begin, text.find_last_not_of(" \n") + 1 - begin);
}

// The checks of tests/demo_model/README.md.
bool is_right(const nlohmann::json& question, const std::string& content) {
  const auto expected = question["expected"].get<std::string>();
  if (question["check"] == "number") return last_number(content) == expected;
  if (question["check"] == "exact") return trimmed(content) == expected;
  return contains_words(content, expected);
}

std::string ask(v1::Inference::Stub& stub, const nlohmann::json& question) {
  v1::ChatRequest request;
  for (const auto& m : question["messages"]) {
    v1::Message* message = request.add_messages();
    message->set_role(m["role"].get<std::string>());
    message->set_content(m["content"].get<std::string>());
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(200);
  request.set_stream(false);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(5));
  v1::ChatResponse response;
  std::string content;
  const auto reader = stub.Chat(&context, request);
  while (reader->Read(&response)) {
    for (const v1::ChatOutput& output : response.outputs()) content += output.content();
  }
  const grpc::Status status = reader->Finish();
  return status.ok() ? content : "error: " + status.error_message();
}

TEST_CASE("the demo model passes its examination through the server") {
  std::vector<nlohmann::json> questions;
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/demo_model/questions.jsonl");
  for (std::string line; std::getline(file, line);) questions.push_back(nlohmann::json::parse(line));
  REQUIRE(questions.size() == 400);

  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(DemoServer::instance().address, grpc::InsecureChannelCredentials()));
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::map<std::string, int> asked, right;
  std::vector<std::thread> clients;
  for (int i = 0; i < 32; ++i) {
    clients.emplace_back([&] {
      for (size_t q; (q = next++) < questions.size();) {
        const std::string content = ask(*stub, questions[q]);
        const auto split = questions[q]["split"].get<std::string>() == "trained" ? "trained" : "held out";
        const std::lock_guard lock(mutex);
        ++asked[split];
        right[split] += is_right(questions[q], content);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  WARN("trained: " << right["trained"] << " of " << asked["trained"] << " right, held out: "
                   << right["held out"] << " of " << asked["held out"]);
  CHECK(asked["trained"] == 300);
  CHECK(right["trained"] >= 285);  // 95 %
  CHECK(asked["held out"] == 100);
  CHECK(right["held out"] >= 80);
}

}  // namespace
}  // namespace shoal
