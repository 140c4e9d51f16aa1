#include <catch2/catch.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "kernels/base/error.h"
#include "server/tracing/call_tracer.h"
#include "server/tracing/trace_context.h"
#include "tests/server/call_records.h"
#include "tests/server/http_get.h"

namespace shoal {
namespace {

using nlohmann::json;

const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736", kParent = "00f067aa0ba902b7";

TEST_CASE("a traceparent is taken as the standard has it, or not at all") {
  const auto context = parse_traceparent("00-" + kTrace + "-" + kParent + "-01");
  REQUIRE(context);
  REQUIRE(context->trace_id == kTrace);
  REQUIRE(context->parent_id == kParent);
  REQUIRE(context->sampled);
  REQUIRE(!parse_traceparent("00-" + kTrace + "-" + kParent + "-00")->sampled);
  REQUIRE(parse_traceparent("00-" + kTrace + "-" + kParent + "-ff")->sampled);
  REQUIRE(parse_traceparent("cc-" + kTrace + "-" + kParent + "-01-what-comes-later"));
  for (const std::string& bad :
       {std::string(), std::string("00"), "00-" + kTrace + "-" + kParent,
        "00-" + kTrace + "-" + kParent + "-1", "ff-" + kTrace + "-" + kParent + "-01",
        "00-" + kTrace + "-" + kParent + "-01-more", "cc-" + kTrace + "-" + kParent + "-01more",
        "00-" + std::string(32, '0') + "-" + kParent + "-01",
        "00-" + kTrace + "-" + std::string(16, '0') + "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + kParent + "-01",
        "00-" + kTrace + "_" + kParent + "-01", "00-" + kTrace + "-00f067aa0ba902bg-01"}) {
    INFO(bad);
    REQUIRE(!parse_traceparent(bad));
  }
}

TEST_CASE("random ids have their length and differ") {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    ids.insert(random_hex(32));
    REQUIRE(random_hex(16).size() == 16);
    REQUIRE(random_hex(16).find_first_not_of("0123456789abcdef") == std::string::npos);
  }
  REQUIRE(ids.size() == 1000);
  REQUIRE(ids.begin()->size() == 32);
}

double seconds(const Span& span) {
  return std::chrono::duration<double>(span.end - span.begin).count();
}

TEST_CASE("a call's spans are inside it and follow each other") {
  CallRecord call = finished_call();
  call.context.traceparent = "00-" + kTrace + "-" + kParent + "-01";
  const std::vector<Span> spans = call_spans(call, "m");
  REQUIRE(spans.size() == 4);
  REQUIRE(spans[0].name == "shoal.v1.Inference/Chat");
  REQUIRE(spans[0].parent_id == kParent);
  REQUIRE(spans[0].server);
  REQUIRE(seconds(spans[0]) == Approx(2.0));
  std::set<std::string> ids;
  for (const Span& span : spans) {
    REQUIRE(span.trace_id == kTrace);
    ids.insert(span.span_id);
    if (&span != &spans[0]) REQUIRE(span.parent_id == spans[0].span_id);
    REQUIRE(span.begin >= spans[0].begin);
    REQUIRE(span.end <= spans[0].end);
  }
  REQUIRE(ids.size() == 4);
  REQUIRE(spans[1].name == "queue");
  REQUIRE(seconds(spans[1]) == Approx(0.4));
  REQUIRE(spans[1].end == spans[2].begin);
  REQUIRE(seconds(spans[2]) == Approx(0.5));
  REQUIRE(spans[2].end == spans[3].begin);
  REQUIRE(seconds(spans[3]) == Approx(0.9));

  call.context.traceparent =
      "00-" + kTrace + "-" + kParent + "-00";  // the caller does not record it
  REQUIRE(call_spans(call, "m").empty());
  call.context.traceparent.clear();
  REQUIRE(call_spans(call, "m")[0].parent_id.empty());
  const std::vector<Span> refused = call_spans(refused_call(), "m");
  REQUIRE(refused.size() == 1);
  REQUIRE(refused[0].failed);
}

TEST_CASE("spans reach a collector as OTLP has them") {
  HttpReceiver receiver;
  CallRecord call = finished_call();
  call.context.traceparent = "00-" + kTrace + "-" + kParent + "-01";
  call.context.request_id = "request \"7\"";
  CallTracer tracer("test/model",
                    {.endpoint = fmt::format("http://127.0.0.1:{}/otlp/", receiver.port()),
                     .version = "1.2.3",
                     .interval = std::chrono::milliseconds(10)});
  tracer.on_end(call);
  REQUIRE(receiver.wait_for(1));
  const HttpReceiver::Post post = receiver.posts()[0];
  REQUIRE(post.path == "/otlp/v1/traces");
  REQUIRE(post.content_type == "application/json");
  const json body = json::parse(post.body);
  const json& resource = body.at("resourceSpans").at(0);
  REQUIRE(resource.at("resource").at("attributes").at(0).at("key") == "service.name");
  REQUIRE(resource.at("resource").at("attributes").at(0).at("value").at("stringValue") == "shoal");
  const json& scope = resource.at("scopeSpans").at(0);
  REQUIRE(scope.at("scope").at("version") == "1.2.3");
  REQUIRE(scope.at("spans").size() == 4);
  const int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count();
  for (const json& span : scope.at("spans")) {
    const std::string hex = "0123456789abcdef";
    REQUIRE(span.at("traceId") == kTrace);
    REQUIRE(span.at("spanId").get<std::string>().size() == 16);
    REQUIRE(span.at("spanId").get<std::string>().find_first_not_of(hex) == std::string::npos);
    // 64-bit numbers are strings in OTLP's JSON.
    const int64_t begin = std::stoll(span.at("startTimeUnixNano").get<std::string>());
    const int64_t end = std::stoll(span.at("endTimeUnixNano").get<std::string>());
    REQUIRE(begin <= end);
    REQUIRE(end <= now);
    REQUIRE(begin > now - int64_t{60'000'000'000});
  }
  const json& whole = scope.at("spans").at(0);
  REQUIRE(whole.at("parentSpanId") == kParent);
  REQUIRE(whole.at("kind") == 2);
  REQUIRE(scope.at("spans").at(1).at("kind") == 1);
  REQUIRE(whole.at("status").at("code") == 1);
  std::map<std::string, json> attributes;
  for (const json& attribute : whole.at("attributes"))
    attributes[attribute.at("key")] = attribute.at("value");
  REQUIRE(attributes.at("gen_ai.usage.completion_tokens").at("intValue") == "10");
  REQUIRE(attributes.at("gen_ai.latency.time_to_first_token").at("doubleValue").get<double>() ==
          Approx(1.0));
  REQUIRE(attributes.at("gen_ai.response.model").at("stringValue") == "test/model");
  REQUIRE(attributes.at("http.request.header.x-request-id").at("stringValue") == "request \"7\"");
}

bool eventually(const std::function<bool()>& holds) {
  for (int i = 0; i < 1000 && !holds(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return holds();
}

TEST_CASE("what the collector does not take is counted, and calls do not wait") {
  SECTION("the queue is full") {
    HttpReceiver receiver;
    OtlpExporter exporter({.endpoint = fmt::format("http://127.0.0.1:{}", receiver.port()),
                           .max_queued = 5,
                           .interval = std::chrono::seconds(3600)});
    exporter.add(std::vector<Span>(4));
    exporter.add(std::vector<Span>(4));
    REQUIRE(exporter.dropped() == 4);
  }
  SECTION("it answers with an error") {
    HttpReceiver receiver(503);
    OtlpExporter exporter({.endpoint = fmt::format("http://127.0.0.1:{}", receiver.port()),
                           .interval = std::chrono::milliseconds(10)});
    exporter.add(std::vector<Span>(3));
    REQUIRE(eventually([&] { return exporter.dropped() == 3; }));
    REQUIRE(exporter.exported() == 0);
  }
  SECTION("nobody listens") {
    int port = 0;
    {
      HttpReceiver receiver;
      port = receiver.port();
    }
    OtlpExporter exporter({.endpoint = fmt::format("http://127.0.0.1:{}", port),
                           .interval = std::chrono::milliseconds(10)});
    exporter.add(std::vector<Span>(3));
    REQUIRE(eventually([&] { return exporter.dropped() == 3; }));
  }
}

TEST_CASE("the end sends what is queued") {
  HttpReceiver receiver;
  {
    OtlpExporter exporter({.endpoint = fmt::format("http://127.0.0.1:{}", receiver.port()),
                           .interval = std::chrono::seconds(3600)});
    exporter.add(std::vector<Span>(2));
  }
  REQUIRE(receiver.posts().size() == 1);
}

TEST_CASE("an endpoint that is none is refused at once") {
  for (const char* bad : {"", "localhost:4318", "grpc://localhost:4317", "http://", "http:///v1"}) {
    INFO(bad);
    REQUIRE_THROWS_AS(OtlpExporter({.endpoint = bad}), InvalidInput);
  }
}

}  // namespace
}  // namespace shoal
