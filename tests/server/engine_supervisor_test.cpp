#include "server/engine_supervisor.h"

#include <catch2/catch.hpp>
#include <signal.h>
#include <stdlib.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

constexpr int32_t kVocab = 40;
constexpr std::chrono::seconds kPatience{60};

class Folder {
 public:
  Folder() {
    std::string path = (std::filesystem::temp_directory_path() / "supervisor-XXXXXX").string();
    path_ = mkdtemp(path.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  pid_t pid() const {
    pid_t pid = 0;
    std::ifstream(path_ + "/pid") >> pid;
    return pid;
  }

 private:
  std::string path_;
};

bool alive(pid_t pid) { return kill(pid, 0) == 0; }

template <typename Condition>
bool eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

SupervisorOptions options(const std::string& behaviour, const Folder& folder) {
  SupervisorOptions o;
  o.command = {FAKE_RANK, behaviour, folder.path()};
  return o;
}

Request make_request(RequestId id, int32_t max_tokens) {
  Request request;
  request.id = id;
  for (int32_t i = 0; i < 10; ++i) {
    request.tokens.push_back(static_cast<int32_t>((id * 7 + static_cast<RequestId>(i)) % kVocab));
  }
  request.prompt_len = 10;
  request.sampling.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

class Events {
 public:
  std::function<void(const TokenEvent&)> callback() {
    return [this](const TokenEvent& e) {
      const std::lock_guard lock(mutex_);
      if (e.token) tokens_[e.id].push_back(*e.token);
      if (e.finish_reason == FinishReason::kNone) return;
      ends_[e.id].push_back(e);
    };
  }
  size_t num_tokens(RequestId id) {
    const std::lock_guard lock(mutex_);
    return tokens_[id].size();
  }
  std::vector<int32_t> tokens(RequestId id) {
    const std::lock_guard lock(mutex_);
    return tokens_[id];
  }
  std::map<RequestId, std::vector<TokenEvent>> ends() {
    const std::lock_guard lock(mutex_);
    return ends_;
  }

 private:
  std::mutex mutex_;
  std::map<RequestId, std::vector<int32_t>> tokens_;
  std::map<RequestId, std::vector<TokenEvent>> ends_;
};

TEST_CASE("ranks killed in the middle are replaced, and every stream goes on where it was") {
  Folder folder;
  Events events;
  EngineSupervisor engine(options("run", folder));
  for (RequestId id = 1; id <= 6; ++id) engine.submit(make_request(id, 300), events.callback());
  for (int kills = 1; kills <= 2; ++kills) {
    const size_t wanted = static_cast<size_t>(kills) * 60;
    REQUIRE(eventually([&] { return events.num_tokens(6) > wanted; }));
    const pid_t pid = folder.pid();
    kill(pid, SIGKILL);
    REQUIRE(eventually([&] {
      return engine.status().restarts == kills && engine.status().state == EngineState::kReady;
    }));
  }
  REQUIRE(eventually([&] { return events.ends().size() == 6; }));
  for (RequestId id = 1; id <= 6; ++id) {
    REQUIRE(events.tokens(id) == fake_serial(make_request(id, 300), kVocab, 400, {}));
    REQUIRE(events.ends().at(id).size() == 1);
    REQUIRE(events.ends().at(id)[0].finish_reason == FinishReason::kLength);
  }
  const pid_t last = folder.pid();
  engine.stop();
  REQUIRE(engine.status().state == EngineState::kStopped);
  REQUIRE_FALSE(alive(last));
}

TEST_CASE("a cancelled request ends once, its neighbour is not disturbed") {
  Folder folder;
  Events events;
  EngineSupervisor engine(options("run", folder));
  engine.submit(make_request(1, 300), events.callback());
  engine.submit(make_request(2, 50), events.callback());
  REQUIRE(eventually([&] { return events.num_tokens(1) > 5; }));
  engine.cancel(1);
  engine.cancel(1);
  engine.cancel(77);
  REQUIRE(eventually([&] { return events.ends().size() == 2; }));
  REQUIRE(events.ends().at(1).size() == 1);
  REQUIRE(events.ends().at(1)[0].finish_reason == FinishReason::kAbort);
  REQUIRE(events.tokens(2) == fake_serial(make_request(2, 50), kVocab, 400, {}));
  REQUIRE(eventually([&] { return engine.status().pages_used == 0; }));
}

TEST_CASE("ranks that hang with work are replaced, idle ones are left alone, a short pause is none") {
  Folder folder;
  Events events;
  SupervisorOptions o = options("run", folder);
  o.step_timeout = std::chrono::seconds(2);
  o.stop_grace = std::chrono::milliseconds(200);  // a stopped process does not hear SIGTERM
  EngineSupervisor engine(o);
  engine.submit(make_request(1, 300), events.callback());
  REQUIRE(eventually([&] { return events.num_tokens(1) > 20; }));
  const pid_t pid = folder.pid();
  kill(pid, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  kill(pid, SIGCONT);
  const size_t before = events.num_tokens(1);
  REQUIRE(eventually([&] { return events.num_tokens(1) > before; }));
  CHECK(engine.status().restarts == 0);
  kill(pid, SIGSTOP);
  REQUIRE(eventually([&] { return engine.status().restarts == 1; }));
  REQUIRE(eventually([&] { return events.ends().contains(1); }));
  CHECK(events.tokens(1) == fake_serial(make_request(1, 300), kVocab, 400, {}));
  const pid_t second = folder.pid();
  kill(second, SIGSTOP);
  std::this_thread::sleep_for(2 * o.step_timeout);
  CHECK(engine.status().restarts == 1);
  kill(second, SIGCONT);
}

TEST_CASE("a wrong flag or file fails at once, says why, and is not tried again") {
  for (const char* behaviour : {"bad-flag", "bad-file"}) {
    Folder folder;
    Events events;
    EngineSupervisor engine(options(behaviour, folder));
    engine.submit(make_request(1, 5), events.callback());
    REQUIRE(eventually([&] { return engine.status().state == EngineState::kFailed; }));
    const std::string why = engine.status().detail;
    REQUIRE(why == (std::string(behaviour) == "bad-flag" ? "--block-size 0: use 1 to 1024"
                                                         : "config.json: no such architecture"));
    REQUIRE(engine.status().restarts == 0);
    engine.submit(make_request(2, 5), events.callback());
    REQUIRE(eventually([&] { return events.ends().size() == 2; }));
    for (RequestId id : {1, 2}) {
      REQUIRE(events.ends().at(id)[0].finish_reason == FinishReason::kError);
      REQUIRE(events.ends().at(id)[0].error == "engine failed: " + why);
    }
  }
}

TEST_CASE("ranks that never come up, as on a node that does not answer, are given up in time") {
  Folder folder;
  Events events;
  SupervisorOptions o = options("mute", folder);
  o.max_restarts = 1;
  o.engine.placement.launch_timeout = 1;
  EngineSupervisor engine(o);
  engine.submit(make_request(1, 5), events.callback());
  REQUIRE(eventually([&] { return engine.status().state == EngineState::kFailed; }));
  CHECK(engine.status().restarts == 1);
  CHECK(engine.status().detail.find("--launch-timeout") != std::string::npos);
  CHECK_FALSE(alive(folder.pid()));
  REQUIRE(eventually([&] { return events.ends().size() == 1; }));
  CHECK(events.ends()[1].front().finish_reason == FinishReason::kError);
}

TEST_CASE("a kill leaves ranks that serve no time") {
  Folder folder;
  EngineSupervisor engine(options("run", folder));
  REQUIRE(eventually([&] { return engine.status().state == EngineState::kReady; }));
  kill(folder.pid(), SIGSTOP);  // it will not end by itself
  engine.begin_stop();
  CHECK_FALSE(engine.wait_stopped(std::chrono::milliseconds(100)));
  engine.kill();
  CHECK(engine.wait_stopped(kPatience));
  CHECK(engine.status().state == EngineState::kStopped);
  CHECK_FALSE(alive(folder.pid()));
}

TEST_CASE("ranks that die again and again are given up") {
  Folder folder;
  Events events;
  SupervisorOptions o = options("die", folder);
  o.max_restarts = 2;
  EngineSupervisor engine(o);
  engine.submit(make_request(1, 5), events.callback());
  REQUIRE(eventually([&] { return engine.status().state == EngineState::kFailed; }));
  REQUIRE(engine.status().restarts == 2);
  REQUIRE(engine.status().detail.find("exit code 3") != std::string::npos);
  REQUIRE(eventually([&] { return events.ends().size() == 1; }));
}

TEST_CASE("stopping ends ranks that are loading, and what waits for them") {
  Folder folder;
  Events events;
  EngineSupervisor engine(options("load-forever", folder));
  engine.submit(make_request(1, 5), events.callback());
  REQUIRE(eventually([&] { return engine.status().state == EngineState::kLoading; }));
  REQUIRE(engine.status().detail == "loading 50 %");
  engine.submit(make_request(2, 5), events.callback());
  engine.cancel(2);
  REQUIRE(eventually([&] { return events.ends().contains(2); }));
  const pid_t pid = folder.pid();
  engine.stop();
  REQUIRE_FALSE(alive(pid));
  REQUIRE(eventually([&] { return events.ends().contains(1); }));
}

}  // namespace
}  // namespace shoal
