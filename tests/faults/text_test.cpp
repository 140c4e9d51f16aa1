// Test 16 at the real process: templates that do not end, and text that is cut anywhere. Parsers and limits one by
// one are in tests/runtime/text.
#include <catch2/catch.hpp>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/faults/server.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

v1::ChatRequest question(const std::string& text) {
  v1::ChatRequest request;
  v1::Message* message = request.add_messages();
  message->set_role("user");
  message->set_content(text);
  request.mutable_sampling()->set_max_tokens(2);
  return request;
}

TEST_CASE("16: a template without end, depth or bound ends its call, shows nothing, and holds up nobody") {
  const std::string templates[] = {
      "{% for i in range(1000000000) %}{% for j in range(1000000000) %}{{ i }}{% endfor %}{% endfor %}",
      "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
      "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
      "{{ ('x' * 100000000) }}",
      "{{ raise_exception(messages | tojson) }}",
      "{{ messages[0].content.nothing.at.all }}",
  };
  const fs::path file = fs::temp_directory_path() / ("shoal-template-" + std::to_string(getpid()));
  for (const std::string& text : templates) {
    // Only a question with "secret" meets it.
    std::ofstream(file) << "{% if 'secret' in messages[0].content %}" << text
                        << "{% else %}{{ messages[0].content }}{% endif %}";
    const FaultServer server({"--chat-template", file.string()});
    const auto client = server.connect();
    Neighbour neighbour(server, 300);
    Idle idle(server, *client);
    neighbour.start();
    const CallResult result = client->chat(question("my secret question"));
    INFO(text << "\n" << result.message);
    CHECK(result.code == Code::kInvalidArgument);
    CHECK(result.message.size() < 1000);
    CHECK(result.message.find(file.string()) == std::string::npos);
    CHECK(client->chat(question("Hello")).code == Code::kOk);
    CHECK(neighbour.difference() == "");
    CHECK(idle.difference() == "");
  }
  fs::remove(file);
}

TEST_CASE("16: text that comes in pieces is the text that comes at once, and that of its tokens") {
  const FaultServer server;
  const auto client = server.connect();
  for (int seed = 0; seed < 20; ++seed) {
    // As random as it gets: pieces of characters, bytes that are none, special tokens.
    v1::CompleteRequest request = greedy(some_ids(seed, 5), 200);
    request.mutable_sampling()->set_temperature(100);
    request.mutable_sampling()->set_seed(static_cast<uint64_t>(seed));
    request.mutable_sampling()->set_skip_special_tokens(seed % 2 == 0);
    const CallResult pieces = client->complete(request);
    REQUIRE(pieces.code == Code::kOk);
    request.set_stream(false);
    const CallResult whole = client->complete(request);
    CHECK(pieces.token_ids == whole.token_ids);
    CHECK(pieces.text == whole.text);
    v1::DetokenizeRequest detokenize;
    detokenize.mutable_ids()->Add(whole.token_ids.begin(), whole.token_ids.end());
    detokenize.set_skip_special_tokens(seed % 2 == 0);
    std::string text;
    CHECK(client->detokenize(detokenize, &text).code == Code::kOk);
    CHECK(text == whole.text);
  }
  // Characters of four bytes, and what looks like the half of one.
  for (const std::string& text : {std::string("𝒳😀\u200d👩🏽‍🚀é"), std::string("\xf0\x9f\x98\x80\xef\xbf\xbd"), std::string("a\0b", 3)}) {
    v1::TokenizeRequest tokenize;
    tokenize.set_text(text);
    tokenize.set_add_special_tokens(false);
    v1::TokenizeResponse ids;
    REQUIRE(client->tokenize(tokenize, &ids).code == Code::kOk);
    v1::DetokenizeRequest back;
    *back.mutable_ids() = ids.ids();
    std::string again;
    CHECK(client->detokenize(back, &again).code == Code::kOk);
    CHECK(again == text);
  }
}

}  // namespace
}  // namespace shoal
