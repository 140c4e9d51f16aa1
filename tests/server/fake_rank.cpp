// A rank without a model: the real EngineService and Engine over tests/runtime/fake_model.h.
// fake_rank BEHAVIOUR FOLDER SOCKET; its process id is written to FOLDER/pid.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "server/engine_service.h"
#include "tests/runtime/fake_model.h"

namespace shoal {
namespace {

constexpr int32_t kVocab = 40;

class SlowModel : public FakeModel {
 public:
  using FakeModel::FakeModel;
  std::span<const float> run(const StepPlan& plan) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return FakeModel::run(plan);
  }
};

class LoneGroup : public ProcessGroup {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void broadcast(std::vector<std::byte>&) override {}
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte>) override { return {}; }
  int64_t min(int64_t value) override { return value; }
  void barrier() override {}
  [[noreturn]] void abort(const std::string& reason) override { throw DeviceFault(reason); }
};

int run(const std::string& behaviour, const std::string& folder, const std::string& socket) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::ofstream(folder + "/pid.new") << getpid();
  rename((folder + "/pid.new").c_str(), (folder + "/pid").c_str());
  if (behaviour == "die") return 3;
  if (behaviour == "mute") std::this_thread::sleep_for(std::chrono::hours(1));
  if (behaviour == "bad-flag") {
    fmt::print(stderr, "shoal: error: --block-size 0: use 1 to 1024\n");
    return 2;
  }
  EngineConfig config;
  config.vocab_size = kVocab;
  config.scheduler.max_num_seqs = 8;
  config.scheduler.max_num_batched_tokens = 32;
  config.scheduler.max_model_len = 400;
  config.scheduler.page_size = 4;
  config.scheduler.num_pages = 300;
  SlowModel model(config.scheduler, kVocab);
  LoneGroup group;
  EngineService service(socket);
  service.loading(50, 100);
  if (behaviour == "load-forever") std::this_thread::sleep_for(std::chrono::hours(1));
  if (behaviour == "bad-file") {
    service.failed("config.json: no such architecture", true);
    return 2;
  }
  Engine* self = nullptr;
  Engine engine(config, group, model, [&](std::vector<TokenEvent> events) {
    service.emit(std::move(events), self->stats());
  });
  self = &engine;
  service.serve(engine, {.max_model_len = 400, .kv_tokens = 1200, .ranks = {"fake"}});
  engine.run();
  service.release();
  return 0;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  return argc == 4 ? shoal::run(argv[1], argv[2], argv[3]) : 2;
}
