#include "server/tracing/otlp_exporter.h"

#include <httplib.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr size_t kBatch = 512;
constexpr time_t kConnectSeconds = 2, kAnswerSeconds = 5;
constexpr std::chrono::seconds kLastWords{2};
// Of the specification's enumerations.
constexpr int kKindInternal = 1, kKindServer = 2, kStatusOk = 1, kStatusError = 2;

// 64-bit integers are strings in protobuf's JSON.
std::string nanoseconds(std::chrono::system_clock::time_point time) {
  return std::to_string(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

json to_json(const Span::Attribute& attribute) {
  json value;
  switch (attribute.kind) {
    case Span::Attribute::Kind::kText: value["stringValue"] = attribute.text; break;
    case Span::Attribute::Kind::kWhole: value["intValue"] = std::to_string(attribute.whole); break;
    case Span::Attribute::Kind::kReal: value["doubleValue"] = attribute.real; break;
  }
  return {{"key", attribute.key}, {"value", value}};
}

json to_json(const Span& span) {
  json s = {{"traceId", span.trace_id},
            {"spanId", span.span_id},
            {"name", span.name},
            {"kind", span.server ? kKindServer : kKindInternal},
            {"startTimeUnixNano", nanoseconds(span.begin)},
            {"endTimeUnixNano", nanoseconds(span.end)},
            {"attributes", json::array()},
            {"status", {{"code", span.failed ? kStatusError : kStatusOk}}}};
  if (!span.parent_id.empty()) s["parentSpanId"] = span.parent_id;
  if (span.failed) s["status"]["message"] = span.message;
  for (const Span::Attribute& attribute : span.attributes) s["attributes"].push_back(to_json(attribute));
  return s;
}

}  // namespace

std::string otlp_json(const OtlpOptions& options, const std::vector<Span>& spans) {
  json list = json::array();
  for (const Span& span : spans) list.push_back(to_json(span));
  const json resource = {{"attributes", json::array({to_json(Span::Attribute("service.name", options.service_name)),
                                          to_json(Span::Attribute("service.version", options.version))})}};
  const json scope = {{"name", "shoal"}, {"version", options.version}};
  const json scopes = {{{"scope", scope}, {"spans", list}}};
  const json body = {{"resourceSpans", {{{"resource", resource}, {"scopeSpans", scopes}}}}};
  return body.dump(-1, ' ', false, json::error_handler_t::replace);
}

class OtlpExporter::Impl {
 public:
  explicit Impl(OtlpOptions options) : options_(std::move(options)) {
    const std::string& endpoint = options_.endpoint;
    const size_t host = endpoint.starts_with("http://")    ? 7
                        : endpoint.starts_with("https://") ? 8
                                                           : 0;
    const size_t slash = endpoint.find('/', host);
    if (host == 0 || endpoint.size() == host || slash == host) {
      throw_invalid("--otlp-endpoint {}: use http://HOST:4318 or https://HOST:4318", endpoint);
    }
    client_ = std::make_unique<httplib::Client>(endpoint.substr(0, slash));
    if (!client_->is_valid()) throw_invalid("--otlp-endpoint {}: no such address", endpoint);
    path_ = slash == std::string::npos ? "" : endpoint.substr(slash);
    while (path_.ends_with('/')) path_.pop_back();
    path_ += "/v1/traces";
    client_->set_connection_timeout(kConnectSeconds);
    client_->set_read_timeout(kAnswerSeconds);
    client_->set_write_timeout(kAnswerSeconds);
    client_->set_keep_alive(true);
    thread_ = std::thread([this] { run(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      deadline_ = Clock::now() + kLastWords;
    }
    changed_.notify_all();
    thread_.join();
  }

  void add(std::vector<Span> spans) {
    const std::lock_guard lock(mutex_);
    if (queue_.size() + spans.size() > options_.max_queued) {
      dropped += spans.size();
      return;
    }
    for (Span& span : spans) queue_.push_back(std::move(span));
    if (queue_.size() >= kBatch) changed_.notify_all();
  }

  std::atomic<uint64_t> exported{0}, dropped{0};

 private:
  using Clock = std::chrono::steady_clock;

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait_for(lock, options_.interval, [&] { return ending_ || queue_.size() >= kBatch; });
      while (!queue_.empty() && !(ending_ && Clock::now() > deadline_)) {
        const size_t count = std::min(queue_.size(), kBatch);
        std::vector<Span> batch(std::make_move_iterator(queue_.begin()),
                                std::make_move_iterator(queue_.begin() + static_cast<int64_t>(count)));
        queue_.erase(queue_.begin(), queue_.begin() + static_cast<int64_t>(count));
        lock.unlock();
        (send(batch) ? exported : dropped) += count;
        lock.lock();
      }
      if (!ending_) continue;
      dropped += queue_.size();
      return;
    }
  }

  // A batch that is not taken is lost: spans are not worth the memory of an outage.
  bool send(const std::vector<Span>& batch) {
    const httplib::Result result = client_->Post(path_, otlp_json(options_, batch), "application/json");
    const bool sent = result && result->status / 100 == 2;
    if (sent != std::exchange(sending_, sent)) {
      if (sent) {
        spdlog::info("spans reach {} again", options_.endpoint);
      } else {
        spdlog::warn("spans do not reach {}: {}; they are dropped", options_.endpoint,
                     result ? fmt::format("HTTP {}", result->status) : httplib::to_string(result.error()));
      }
    }
    return sent;
  }

  const OtlpOptions options_;
  std::string path_;
  std::unique_ptr<httplib::Client> client_;  // of the thread
  bool sending_ = true;                      // of the thread
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Span> queue_;        // guarded by mutex_, as the rest
  bool ending_ = false;
  Clock::time_point deadline_{};  // of the end
  std::thread thread_;
};

OtlpExporter::OtlpExporter(OtlpOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
OtlpExporter::~OtlpExporter() = default;
void OtlpExporter::add(std::vector<Span> spans) { impl_->add(std::move(spans)); }
uint64_t OtlpExporter::exported() const { return impl_->exported; }
uint64_t OtlpExporter::dropped() const { return impl_->dropped; }

}  // namespace shoal
