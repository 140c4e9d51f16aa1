#include "tests/faults/server.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

namespace shoal {
namespace {

namespace fs = std::filesystem;

std::string cmdline(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/cmdline", pid), std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  std::replace(text.begin(), text.end(), '\0', ' ');
  return text;
}

std::vector<std::string> serve_args(const std::vector<std::string>& flags, const std::string& model) {
  std::vector<std::string> args = {"serve", "--model", model, "--port", "0"};
  args.insert(args.end(), flags.begin(), flags.end());
  return args;
}

}  // namespace

bool eventually(const std::function<bool()>& condition, double seconds) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
  while (std::chrono::steady_clock::now() < deadline) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return condition();
}

FaultServer::FaultServer(const std::vector<std::string>& flags, const std::string& model)
    : process(serve_args(flags, model)) {
  const std::string ready = process.wait_line("Ready: ", kPatienceSeconds);
  const std::string mark = "--server ";
  const size_t begin = ready.find(mark);
  if (begin == std::string::npos) {
    throw std::runtime_error("shoal serve did not become ready:\n" + process.output());
  }
  address = ready.substr(begin + mark.size());
  address = address.substr(0, address.find(' '));
  port = std::stoi(address.substr(address.rfind(':') + 1));
}

std::vector<pid_t> FaultServer::rank_pids() const {
  std::vector<pid_t> ranks;
  for (const pid_t pid : descendants(process.pid())) {
    const std::string command = cmdline(pid);
    if (command.find(" rank ") != std::string::npos && !command.starts_with("mpirun")) ranks.push_back(pid);
  }
  return ranks;
}

Vitals vitals(pid_t pid) {
  Vitals result;
  std::error_code gone;
  const std::string folder = fmt::format("/proc/{}", pid);
  for (auto it = fs::directory_iterator(folder + "/fd", gone); !gone && it != fs::directory_iterator();
       it.increment(gone)) {
    ++result.fds;
  }
  std::ifstream file(folder + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("Threads:")) result.threads = std::stoi(line.substr(8));
    if (line.starts_with("VmRSS:")) result.rss = std::stoll(line.substr(6)) * 1024;
  }
  return result;
}

Idle::Idle(const FaultServer& server, FaultClient& client) : server_(server), client_(client) {
  eventually([&] {
    before_ = client_.status();
    return before_.streams_open() == 0 && before_.kv_pages_used() == 0;
  });
  vitals_[server.process.pid()] = vitals(server.process.pid());
  for (const pid_t pid : server.rank_pids()) vitals_[pid] = vitals(pid);
}

v1::GetStatusResponse Idle::status() { return client_.status(); }

Idle::Ends Idle::ends() {
  const v1::GetStatusResponse now = status();
  return {now.calls_ok() - before_.calls_ok(), now.calls_cancelled() - before_.calls_cancelled(),
          now.calls_deadline_exceeded() - before_.calls_deadline_exceeded(),
          now.calls_rejected() - before_.calls_rejected(), now.calls_failed() - before_.calls_failed()};
}

std::string Idle::difference_now(int64_t rss_slack, int slack) {
  const v1::GetStatusResponse now = client_.status();
  std::string left;
  const auto must_be_zero = [&](const char* what, int64_t value) {
    if (value != 0) left += fmt::format("{} {}; ", what, value);
  };
  must_be_zero("streams_open", now.streams_open());
  must_be_zero("requests_running", now.requests_running());
  must_be_zero("requests_waiting", now.requests_waiting());
  must_be_zero("kv_pages_used", now.kv_pages_used());
  for (const auto& [pid, before] : vitals_) {
    const Vitals after = vitals(pid);
    if (after.threads == 0) continue;  // a rank that was killed
    const bool rank = pid != server_.process.pid();
    const auto compare = [&](const char* what, int64_t was, int64_t is, int64_t more) {
      if (is > was + more) left += fmt::format("{} {}: {} {}, were {}; ", rank ? "rank" : "front end", pid, what, is, was);
    };
    compare("file descriptors", before.fds, after.fds, slack);
    compare("threads", before.threads, after.threads, slack);
    // A page of the KV cache counts from its first use on.
    const int64_t touched = rank ? static_cast<int64_t>(now.kv_cache_bytes()) : 0;
    if (!sanitized()) compare("bytes in memory", before.rss, after.rss, rss_slack + touched);
  }
  return left;
}

std::string Idle::difference(int64_t rss_slack, int slack) {
  std::string left;
  eventually([&] { return (left = difference_now(rss_slack, slack)).empty(); }, kPatienceSeconds / 4);
  return left;
}

struct Neighbour::Impl {
  std::unique_ptr<FaultClient> client;
  v1::CompleteRequest request;
  CallResult expected, result;
  std::unique_ptr<FaultClient::Stream> stream;
  std::thread reader;
};

Neighbour::Neighbour(const FaultServer& server, int max_tokens, double temperature)
    : impl_(std::make_unique<Impl>()) {
  impl_->client = server.connect();
  impl_->request = greedy(some_ids(4711, 40), max_tokens);
  impl_->request.mutable_sampling()->set_temperature(static_cast<float>(temperature));
  impl_->request.mutable_sampling()->set_seed(99);
  impl_->expected = impl_->client->complete(impl_->request);
  if (impl_->expected.code != Code::kOk) throw std::runtime_error("neighbour: " + impl_->expected.message);
}

Neighbour::~Neighbour() {
  if (impl_->reader.joinable()) impl_->reader.join();
}

void Neighbour::start() {
  impl_->stream = impl_->client->open(impl_->request);
  v1::CompleteResponse first;
  impl_->stream->read(&first);
  impl_->reader = std::thread([this] { impl_->result = impl_->stream->finish(); });
}

std::string Neighbour::difference() {
  impl_->reader.join();
  const CallResult &expected = impl_->expected, &result = impl_->result;
  if (result.code != Code::kOk) return fmt::format("code {}: {}", static_cast<int>(result.code), result.message);
  if (result.token_ids == expected.token_ids && result.text == expected.text) return "";
  const auto at = std::mismatch(result.token_ids.begin(), result.token_ids.end(), expected.token_ids.begin(),
                                expected.token_ids.end());
  return fmt::format("{} tokens instead of {}, different from token {} on", result.token_ids.size(),
                     expected.token_ids.size(), at.first - result.token_ids.begin());
}

bool sanitized() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

}  // namespace shoal
