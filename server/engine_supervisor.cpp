#include "server/engine_supervisor.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "kernels/base/error.h"
#include "server/engine_wire.h"
#include "server/launcher.h"
#include "shoal/engine/v1/engine.grpc.pb.h"

namespace shoal {
namespace pb = engine::v1;
namespace {

using Clock = std::chrono::steady_clock;
using OnEvent = std::function<void(const TokenEvent&)>;
using Stream = grpc::ClientReaderWriter<pb::ToEngine, pb::FromEngine>;

constexpr int kInvalidInputExit = 2;
constexpr std::chrono::milliseconds kRestartPause{500};
constexpr std::chrono::milliseconds kSocketPoll{10};
// From the end of the conversation to the end of the processes: mpirun takes a moment to notice.
constexpr std::chrono::milliseconds kLongestExit{3000};
// How often ranks that have work are looked at.
constexpr std::chrono::milliseconds kWatchInterval{200};

// What is left of a kill: ranks that do not heed SIGTERM in that time get SIGKILL.
constexpr std::chrono::milliseconds kKillGrace{700};
// Ranks that hang will not end by themselves; mpirun gets that time to end those that it reaches.
constexpr std::chrono::milliseconds kHungGrace{1500};

std::chrono::milliseconds seconds_of(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
}

// A folder of this user only, for the sockets and what MPI keeps in files. In memory, unless TMPDIR says
// another place: there may be no disk to write to, and shared memory belongs on none.
class PrivateFolder {
 public:
  PrivateFolder() {
    const bool memory = std::getenv("TMPDIR") == nullptr && access("/dev/shm", W_OK | X_OK) == 0;
    const std::filesystem::path parent =
        memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path();
    std::string path = (parent / "shoal-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) {
      throw DeviceFault(fmt::format("cannot make {}: {}", path, strerror(errno)));
    }
    path_ = path;
  }
  ~PrivateFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  PrivateFolder(const PrivateFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::unique_ptr<pb::Engine::Stub> connect(const std::string& socket_path) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // The socket is there a fraction of a second after the process.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 250);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return pb::Engine::NewStub(grpc::CreateCustomChannel(
      "unix:" + socket_path, grpc::InsecureChannelCredentials(), arguments));
}

// What the output of one life of the ranks says about its end, beside what is only passed on.
class RankOutput {
 public:
  void line(const std::string& text) {
    constexpr std::string_view kError = "shoal: error: ";
    if (text.starts_with(kError)) {  // main()'s last word: the supervisor reports it
      const std::lock_guard lock(mutex_);
      if (error_.empty()) error_ = text.substr(kError.size());
      return;
    }
    const size_t level = std::string_view("TDIWEC").find(text[0]);
    if (text.size() < 3 || text[1] != ' ' || level == std::string_view::npos) {
      spdlog::info("ranks: {}", text);
      return;
    }
    spdlog::log(static_cast<spdlog::level::level_enum>(level), "{}", text.substr(2));
    if (text[0] != 'C') return;
    const std::lock_guard lock(mutex_);
    if (fatal_.empty()) fatal_ = text.substr(2);
  }
  void exited(const ProcessExit& exit) {
    const std::lock_guard lock(mutex_);
    exit_ = exit;
  }
  std::string reason() const {
    const std::lock_guard lock(mutex_);
    if (!error_.empty()) return error_;
    if (!fatal_.empty()) return fatal_;
    return fmt::format("the ranks ended with {}", exit_ ? describe(*exit_) : "no exit code");
  }
  bool invalid_input() const {
    const std::lock_guard lock(mutex_);
    return exit_ && exit_->signal == 0 && exit_->code == kInvalidInputExit;
  }

 private:
  mutable std::mutex mutex_;
  std::string error_, fatal_;
  std::optional<ProcessExit> exit_;
};

}  // namespace

class EngineSupervisor::Impl {
 public:
  explicit Impl(SupervisorOptions options) : options_(std::move(options)) {
    status_.world_size = options_.engine.tensor_parallel_size;
    dispatcher_ = std::thread([this] { dispatch(); });
    supervisor_ = std::thread([this] { supervise(); });
  }

  ~Impl() {
    stop();
    supervisor_.join();
    {
      const std::lock_guard lock(mutex_);
      dispatch_ended_ = true;
      to_deliver_.notify_one();
    }
    dispatcher_.join();
  }

  void submit(Request request, OnEvent on_event) {
    const std::lock_guard lock(mutex_);
    const RequestId id = request.id;
    const auto [it, fresh] = journal_.try_emplace(
        id, Entry{std::move(request), std::make_shared<const OnEvent>(std::move(on_event))});
    SHOAL_CHECK(fresh, "request id {} is in use", id);
    if (ended_) {
      end_request(it);
    } else if (ready_) {
      send_submit(it->second.request);
    }
  }

  void cancel(RequestId id) {
    const std::lock_guard lock(mutex_);
    const auto it = journal_.find(id);
    if (it == journal_.end() || it->second.cancelled) return;
    it->second.cancelled = true;
    if (!ready_) {
      end_request(it);
      return;
    }
    pb::ToEngine message;
    message.mutable_cancel()->set_id(id);
    send(std::move(message));
  }

  EngineStatus status() const {
    const std::lock_guard lock(mutex_);
    EngineStatus status = status_;
    status.unfinished = static_cast<int64_t>(journal_.size());
    return status;
  }

  void set_on_state(std::function<void(const EngineStatus&)> on_state) {
    const std::lock_guard lock(mutex_);
    on_state_ = std::make_shared<const std::function<void(const EngineStatus&)>>(std::move(on_state));
  }

  void begin_stop() {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    if (ready_) {
      pb::ToEngine message;
      message.mutable_shutdown();
      send(std::move(message));
    } else {
      begin_kill();  // loading: nothing there listens
    }
    changed_.notify_all();
  }

  void kill() {
    begin_stop();
    const std::lock_guard lock(mutex_);
    begin_kill();
  }

  bool wait_stopped(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return ended_; });
  }

  void stop() {
    begin_stop();
    if (wait_stopped(options_.stop_grace)) return;
    kill();  // a step that does not end
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_; });
  }

 private:
  struct Entry {
    Request request;  // tokens: with those emitted so far
    std::shared_ptr<const OnEvent> on_event;
    std::optional<int32_t> cached_tokens;  // what the first life of the ranks found
    bool cancelled = false;
  };
  using Journal = std::map<RequestId, Entry>;  // ids rise, so this is the order of arrival

  // How one life of the ranks ended.
  struct End {
    std::string reason;
    bool invalid_input = false;
  };

  // --- with mutex_ held ---

  void begin_kill() {
    killing_ = true;
    if (context_ != nullptr) context_->TryCancel();
    changed_.notify_all();
  }

  void send(pb::ToEngine message) {
    outgoing_.push_back(std::move(message));
    to_send_.notify_one();
  }

  void send_submit(const Request& request) {
    pb::ToEngine message;
    *message.mutable_submit() = to_message(request);
    send(std::move(message));
    to_deliver_.notify_one();  // who delivers also watches the ranks while they have work
  }

  void deliver(std::function<void()> call) {
    deliveries_.push_back(std::move(call));
    if (!handling_) to_deliver_.notify_one();
  }

  void deliver(const Entry& entry, TokenEvent event) {
    deliver([on_event = entry.on_event, event = std::move(event)] { (*on_event)(event); });
  }

  // Ends a request that no engine will end.
  Journal::iterator end_request(Journal::iterator it) {
    TokenEvent event;
    event.id = it->first;
    event.cached_tokens = it->second.cached_tokens.value_or(0);
    event.finish_reason = FinishReason::kAbort;
    if (ended_ && !it->second.cancelled && status_.state == EngineState::kFailed) {
      event.finish_reason = FinishReason::kError;
      event.error = "engine failed: " + status_.detail;
    }
    deliver(it->second, std::move(event));
    return journal_.erase(it);
  }

  void set_state(EngineState state, std::string detail) {
    const bool changed = state != status_.state;
    status_.state = state;
    status_.detail = std::move(detail);
    if (changed && on_state_ && *on_state_) {
      deliver([on_state = on_state_, status = status_] { (*on_state)(status); });
    }
  }

  void end(EngineState state, std::string detail) {
    set_state(state, std::move(detail));
    ended_ = true;
    for (auto it = journal_.begin(); it != journal_.end();) it = end_request(it);
    changed_.notify_all();
  }

  // --- messages of the ranks, on the supervisor's thread ---

  void handle(const pb::FromEngine& message, End& end) {
    {
      const std::lock_guard lock(mutex_);
      handling_ = true;
      take(message, end);
      handling_ = false;
    }
    // Once for all tokens of a step, and when the lock is free: waking a thread costs more than its work.
    to_deliver_.notify_one();
  }

  void take(const pb::FromEngine& message, End& end) {
    silence_ = {};
    switch (message.message_case()) {
      case pb::FromEngine::kLoading:
        on_loading(message.loading());
        break;
      case pb::FromEngine::kReady:
        on_ready(message.ready());
        break;
      case pb::FromEngine::kTokens:
        for (const pb::TokenEvent& event : message.tokens().events()) on_token(from_message(event));
        break;
      case pb::FromEngine::kStats:
        on_stats(message.stats());
        break;
      case pb::FromEngine::kFailure:
        end = {message.failure().reason(), message.failure().invalid_input()};
        break;
      case pb::FromEngine::MESSAGE_NOT_SET:
        break;
    }
  }

  void on_loading(const pb::LoadProgress& progress) {
    status_.bytes_read = progress.bytes_read();
    status_.bytes_total = progress.bytes_total();
    const double part = progress.bytes_total() > 0 ? static_cast<double>(progress.bytes_read()) /
                                                         static_cast<double>(progress.bytes_total())
                                                   : 0;
    const bool again = status_.state == EngineState::kRestarting;
    set_state(again ? EngineState::kRestarting : EngineState::kLoading,
              fmt::format("loading {:.0f} %", 100 * part));
  }

  void on_ready(const pb::Ready& ready) {
    update(status_, ready);
    ready_ = true;
    for (const auto& [id, entry] : journal_) send_submit(entry.request);
    set_state(EngineState::kReady, "");
    if (stopping_) {
      pb::ToEngine message;
      message.mutable_shutdown();
      send(std::move(message));
    }
  }

  void on_token(TokenEvent event) {
    const auto it = journal_.find(event.id);
    if (it == journal_.end()) return;
    Entry& entry = it->second;
    if (event.token) entry.request.tokens.push_back(*event.token);
    if (!entry.cached_tokens && event.token) entry.cached_tokens = event.cached_tokens;
    event.cached_tokens = entry.cached_tokens.value_or(0);
    const bool last = event.finish_reason != FinishReason::kNone;
    deliver(entry, std::move(event));
    if (last) journal_.erase(it);
  }

  // Counters go on over a restart.
  void on_stats(const pb::Stats& stats) {
    update(status_, stats);
    status_.prefix_queries += before_.prefix_queries;
    status_.prefix_hits += before_.prefix_hits;
    status_.preemptions += before_.preemptions;
    status_.tiers += before_.tiers;
    status_.steps += before_.steps;
    status_.prompt_tokens += before_.prompt_tokens;
    status_.generated_tokens += before_.generated_tokens;
  }

  // --- threads ---

  // Delivers events, and watches that the ranks say something while they have work.
  void dispatch() {
    std::unique_lock lock(mutex_);
    for (;;) {
      while (!dispatch_ended_ && deliveries_.empty()) {
        if (!ready_ || journal_.empty()) {
          silence_ = {};
          to_deliver_.wait(lock);
        } else {
          watch_ranks(lock);
        }
      }
      if (deliveries_.empty()) return;
      std::deque<std::function<void()>> calls = std::exchange(deliveries_, {});
      lock.unlock();
      for (const auto& call : calls) call();
      calls.clear();  // what they held goes without the lock
      lock.lock();
    }
  }

  // Adds up what it has seen of a silence, so that a pause of this process is not one of the ranks.
  void watch_ranks(std::unique_lock<std::mutex>& lock) {
    const auto begin = Clock::now();
    to_deliver_.wait_for(lock, kWatchInterval);
    silence_ += std::min<Clock::duration>(Clock::now() - begin, 2 * kWatchInterval);
    if (silence_ < options_.step_timeout || !ready_ || silent_ || context_ == nullptr) return;
    silent_ = true;
    context_->TryCancel();
  }

  // Sends outgoing_ until this life of the ranks is over.
  void write_all(Stream& stream) {
    std::unique_lock lock(mutex_);
    for (;;) {
      to_send_.wait(lock, [&] { return life_ended_ || !outgoing_.empty(); });
      if (life_ended_) return;
      std::deque<pb::ToEngine> batch = std::exchange(outgoing_, {});
      lock.unlock();
      for (const pb::ToEngine& message : batch) {
        // What cannot be written any more is in the journal.
        if (!stream.Write(message)) return;
        if (message.has_shutdown()) stream.WritesDone();
      }
      lock.lock();
    }
  }

  RankWorld world(const std::string& socket_path) const {
    std::vector<std::string> one = options_.command;
    if (one.empty()) {
      one = rank_command(options_.engine, socket_path);
    } else {
      one.push_back(socket_path);
    }
    return make_rank_world(options_.engine.placement, options_.engine.tensor_parallel_size, std::move(one),
                           folder_.path());
  }

  // False: they still run after `limit`, or are to be killed at once.
  bool gone_within(RankProcesses& processes, std::chrono::milliseconds limit) {
    constexpr std::chrono::milliseconds kSlice{20};
    for (const auto end = Clock::now() + limit; Clock::now() < end;) {
      if (processes.wait(kSlice)) return true;
      const std::lock_guard lock(mutex_);
      if (killing_) return false;
    }
    return processes.wait(std::chrono::milliseconds(0));
  }

  // One life of the ranks, from fork to the last process's end.
  End live() {
    const std::string socket_path = fmt::format("{}/{}.sock", folder_.path(), ++lives_);
    RankOutput output;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);  // the socket is not there yet
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return {};
      context_ = &context;
      life_ended_ = false;
      silent_ = false;
    }
    End end;
    bool silent = false;
    {
      RankProcesses processes(world(socket_path),
                              {.on_line = [&](const std::string& line) { output.line(line); },
                               .on_exit =
                                   [&](const ProcessExit& exit) {
                                     output.exited(exit);
                                     context.TryCancel();  // also while it waits for the socket
                                   }});
      // A first attempt before the socket is there would wait for gRPC's timers.
      const auto stopping = [&] {
        const std::lock_guard lock(mutex_);
        return stopping_;
      };
      const auto launch_end = Clock::now() + seconds_of(options_.engine.placement.launch_timeout);
      bool late = false;
      while (!stopping() && !std::filesystem::exists(socket_path) && !processes.wait(kSocketPoll)) {
        late = Clock::now() > launch_end;
        if (late) break;
      }
      if (late) context.TryCancel();
      const auto stub = connect(socket_path);
      const std::unique_ptr<Stream> stream = stub->Run(&context);
      std::thread writer([&] { write_all(*stream); });
      try {
        for (pb::FromEngine message; stream->Read(&message);) handle(message, end);
      } catch (const std::exception& error) {
        end.reason = error.what();
      }
      {
        const std::lock_guard lock(mutex_);
        silent = silent_ || late;
        if (late) {
          end.reason = fmt::format(
              "the ranks were not up after {:.1f} s (--launch-timeout): a node that cannot be reached, or a device that hangs",
              options_.engine.placement.launch_timeout);
        } else if (silent) {
          end.reason = fmt::format(
              "the ranks have said nothing for {:.1f} s: one hangs, or a step takes longer than --step-timeout",
              std::chrono::duration<double>(options_.step_timeout).count());
        }
        ready_ = false;
        life_ended_ = true;
        handling_ = false;
        outgoing_.clear();
        to_send_.notify_one();
      }
      // What the ranks are doing cannot be used any more; most often they are ending.
      if (silent || !gone_within(processes, kLongestExit)) {
        processes.signal_group(SIGTERM);
        gone_within(processes, silent ? kHungGrace : options_.stop_grace);
        processes.terminate(kKillGrace);
      }
      context.TryCancel();
      writer.join();
      stream->Finish();
    }
    const std::lock_guard lock(mutex_);
    context_ = nullptr;
    if (end.reason.empty()) end.reason = output.reason();
    if (output.invalid_input()) end.invalid_input = true;
    return end;
  }

  void supervise() {
    std::deque<Clock::time_point> restarts;
    for (;;) {
      End last;
      try {
        last = live();
      } catch (const std::exception& error) {
        last = {error.what()};
      }
      std::unique_lock lock(mutex_);
      context_ = nullptr;
      if (stopping_) return end(EngineState::kStopped, "");
      if (last.invalid_input) return end(EngineState::kFailed, last.reason);
      while (!restarts.empty() && Clock::now() - restarts.front() > options_.restart_window) {
        restarts.pop_front();
      }
      if (static_cast<int>(restarts.size()) >= options_.max_restarts) {
        spdlog::error("the ranks died again: {}; giving up", last.reason);
        return end(EngineState::kFailed, fmt::format("{} (after {} restarts in {} s)", last.reason,
                                                     restarts.size(),
                                                     options_.restart_window.count()));
      }
      restarts.push_back(Clock::now());
      before_ = status_;
      status_.running = status_.waiting = status_.pages_used = 0;
      ++status_.restarts;
      for (auto it = journal_.begin(); it != journal_.end();) {
        it = it->second.cancelled ? end_request(it) : std::next(it);
      }
      spdlog::warn("the ranks died: {}; restart {} with {} unfinished requests", last.reason,
                   status_.restarts, journal_.size());
      set_state(EngineState::kRestarting, last.reason);
      changed_.wait_for(lock, kRestartPause, [&] { return stopping_; });
      if (stopping_) return end(EngineState::kStopped, "");
    }
  }

  const SupervisorOptions options_;
  const PrivateFolder folder_;
  int lives_ = 0;  // of the supervisor's thread

  mutable std::mutex mutex_;
  std::condition_variable changed_;     // stopping_, killing_ or ended_
  std::condition_variable to_deliver_;  // for dispatch(): deliveries_, dispatch_ended_, or the first work
  std::condition_variable to_send_;     // for write_all(): outgoing_ or life_ended_
  // All guarded by mutex_.
  Journal journal_;
  EngineStatus status_;
  EngineStatus before_;  // counters of former lives
  std::shared_ptr<const std::function<void(const EngineStatus&)>> on_state_;
  std::deque<pb::ToEngine> outgoing_;  // to this life of the ranks
  std::deque<std::function<void()>> deliveries_;
  grpc::ClientContext* context_ = nullptr;  // of this life
  bool ready_ = false;                      // this life takes submissions
  bool life_ended_ = true;
  bool silent_ = false;                     // this life's ranks hang, and are being killed
  Clock::duration silence_{};               // since the ranks' last word, while they have work
  bool handling_ = false;  // in handle(), which wakes dispatch() itself
  bool stopping_ = false;
  bool killing_ = false;  // and no time is left for the ranks to end by themselves
  bool ended_ = false;  // kFailed or kStopped: no more lives
  bool dispatch_ended_ = false;

  std::thread dispatcher_, supervisor_;
};

EngineSupervisor::EngineSupervisor(SupervisorOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
EngineSupervisor::~EngineSupervisor() = default;

void EngineSupervisor::submit(Request request, std::function<void(const TokenEvent&)> on_event) {
  impl_->submit(std::move(request), std::move(on_event));
}
void EngineSupervisor::cancel(RequestId id) { impl_->cancel(id); }
EngineStatus EngineSupervisor::status() const { return impl_->status(); }
void EngineSupervisor::set_on_state(std::function<void(const EngineStatus&)> on_state) {
  impl_->set_on_state(std::move(on_state));
}
void EngineSupervisor::begin_stop() { impl_->begin_stop(); }
void EngineSupervisor::kill() { impl_->kill(); }
bool EngineSupervisor::wait_stopped(std::chrono::milliseconds timeout) {
  return impl_->wait_stopped(timeout);
}
void EngineSupervisor::stop() { impl_->stop(); }

}  // namespace shoal
