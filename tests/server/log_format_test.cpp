#include <spdlog/sinks/ostream_sink.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/error.h"
#include "server/logging/log_format.h"
#include "server/logging/request_log.h"
#include "tests/server/call_records.h"

namespace shoal {
namespace {

using nlohmann::json;

// What is logged while it lives.
class Capture {
 public:
  explicit Capture(LogFormat format) : before_(spdlog::default_logger()) {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
    sink->set_formatter(make_log_formatter(format));
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  }
  ~Capture() { spdlog::set_default_logger(before_); }
  std::vector<std::string> lines() const {
    std::istringstream stream(text_.str());
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
  }

 private:
  std::shared_ptr<spdlog::logger> before_;
  std::ostringstream text_;
};

TEST_CASE("a line of the JSON log is one object, whatever it says") {
  const Capture capture(LogFormat::kJson);
  spdlog::info("plain");
  spdlog::warn("quotes \" and\nlines \\ and \x01, \xff");
  const std::vector<std::string> lines = capture.lines();
  REQUIRE(lines.size() == 2);
  const json first = json::parse(lines[0]), second = json::parse(lines[1]);
  REQUIRE(first.at("message") == "plain");
  REQUIRE(first.at("level") == "info");
  REQUIRE(first.count("request_id") == 0);
  const std::string time = first.at("time");
  REQUIRE(time.size() == std::string("2026-11-24T18:00:00.123Z").size());
  REQUIRE(time[10] == 'T');
  REQUIRE(time.back() == 'Z');
  REQUIRE(second.at("message") == "quotes \" and\nlines \\ and \x01, \xef\xbf\xbd");
  REQUIRE(second.at("level") == "warning");
}

TEST_CASE("lines of a call carry its id, and no others") {
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    const Capture capture(format);
    {
      const LogFields outer("chat-1");
      spdlog::info("one");
      {
        const LogFields inner("chat-2", {{"n", "3"}});
        spdlog::info("two");
      }
      spdlog::info("three");
    }
    spdlog::info("four");
    const std::vector<std::string> lines = capture.lines();
    REQUIRE(lines.size() == 4);
    if (format == LogFormat::kJson) {
      REQUIRE(json::parse(lines[0]).at("request_id") == "chat-1");
      REQUIRE(json::parse(lines[1]).at("request_id") == "chat-2");
      REQUIRE(json::parse(lines[1]).at("n") == 3);
      REQUIRE(json::parse(lines[2]).at("request_id") == "chat-1");
      REQUIRE(json::parse(lines[3]).count("request_id") == 0);
    } else {
      REQUIRE(lines[0].ends_with("I [chat-1] one"));
      REQUIRE(lines[1].ends_with("I [chat-2] two"));
      REQUIRE(lines[3].ends_with("I four"));
    }
  }
}

TEST_CASE("a call's line says who, what and how long, and not the prompt") {
  CallRecord call = finished_call("chat-7");
  auto client = std::make_shared<Client>();
  client->name = "alice";
  call.context.client = client;
  call.context.request_id = "abc\n123";
  {
    const Capture capture(LogFormat::kText);
    RequestLog().on_end(call);
    REQUIRE(capture.lines().size() == 1);
    REQUIRE(
        capture.lines()[0].ends_with("I [chat-7] Chat OK client=alice x-request-id=abc 123 "
                                     "prompt=12 cached=4 generated=10 finish=stop "
                                     "queue=0.400s ttft=1.000s tpot=0.1000s total=2.000s"));
  }
  const Capture capture(LogFormat::kJson);
  RequestLog().on_end(call);
  call.prompt = "the \"prompt\"";
  RequestLog().on_end(call);
  RequestLog().on_end(refused_call());
  const std::vector<std::string> lines = capture.lines();
  REQUIRE(lines.size() == 3);
  const json line = json::parse(lines[0]);
  REQUIRE(line.at("request_id") == "chat-7");
  REQUIRE(line.at("event") == "request");
  REQUIRE(line.at("client") == "alice");
  REQUIRE(line.at("x_request_id") == "abc\n123");
  REQUIRE(line.at("prompt_tokens") == 12);
  REQUIRE(line.at("completion_tokens") == 10);
  REQUIRE(line.at("ttft_seconds").get<double>() == Approx(1.0));
  REQUIRE(line.at("total_seconds").get<double>() == Approx(2.0));
  REQUIRE(line.count("prompt") == 0);
  REQUIRE(json::parse(lines[1]).at("prompt") == "the \"prompt\"");
  const json refused = json::parse(lines[2]);
  REQUIRE(refused.at("status") == "RESOURCE_EXHAUSTED");
  REQUIRE(refused.at("error") == "the queue\nis full");
  REQUIRE(refused.count("prompt_tokens") == 0);
}

TEST_CASE("an unknown level is refused") {
  REQUIRE_THROWS_AS(set_up_log(LogFormat::kText, "loud"), InvalidInput);
}

}  // namespace
}  // namespace shoal
