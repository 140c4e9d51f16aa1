// One client's call of Chat or Complete: n samples that run as n requests of the engine, and what
// is ready to be sent of them.
//
// Two sides meet here. The engine's thread brings events; they are merged into one pending update,
// so a reader that is slower than the model gets fewer, larger updates and the batch never waits
// for it. The consumer (a gRPC stream) takes updates, one at a time, when its last write is done.
// What waits is bounded (kMaxPendingBytes); a reader that does not read at all is ended by
// CallBook::end_stalled.
//
// Thread-safe. `wake` is called without locks held, from the engine's thread or from whoever calls
// end(); it must not block. The engine client must outlive every call.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/admission/admission.h"
#include "server/call_context.h"
#include "server/call_observer.h"
#include "server/call_status.h"
#include "server/engine_client.h"
#include "server/sequence_output.h"

namespace shoal {

using Clock = std::chrono::steady_clock;

// What a stream may owe its reader: as much as gRPC clients take in one message by default.
inline constexpr size_t kMaxPendingBytes = size_t{4} << 20;

struct CallUsage {
  int32_t prompt_tokens = 0, completion_tokens = 0, reasoning_tokens = 0, cached_tokens = 0;
};

struct CallUpdate {
  std::vector<OutputDelta> outputs;  // by index, without empty ones
  std::optional<CallUsage> usage;    // in the last one
};

struct CallCounts {
  int64_t open = 0;  // calls
  int64_t sequences = 0;      // alive in the engine
  int64_t pending_bytes = 0;  // of open calls: ready, and not taken by their streams
  // accepted == open + ok + cancelled + deadline_exceeded + failed
  uint64_t accepted = 0, ok = 0, cancelled = 0, deadline_exceeded = 0, failed = 0;
  uint64_t rejected = 0;  // never began
  std::map<std::string, uint64_t> rejected_by;  // the same by refusal_name()
};

class Call;

// All calls that have not ended, and how those that have did. Thread-safe.
class CallBook {
 public:
  explicit CallBook(AdmissionOptions options)
      : admission_(std::make_shared<Admission>(std::move(options))) {}

  Admission& admission() { return *admission_; }
  void opened(std::shared_ptr<Call> call);
  void closed(const Call* call, CallCode code);
  // A call of `method` that never began.
  void rejected(const char* method, const CallContext& context, const CallStatus& status);
  CallCounts counts() const;
  // Tells `observer` of every call from now on. Before the first one.
  void observe(std::shared_ptr<CallObserver> observer) { observers_.push_back(std::move(observer)); }
  const std::vector<std::shared_ptr<CallObserver>>& observers() const { return observers_; }

  void end_stalled(Clock::duration timeout);
  void end_all(const CallStatus& status);

 private:
  std::vector<std::shared_ptr<Call>> calls() const;

  const std::shared_ptr<Admission> admission_;
  std::vector<std::shared_ptr<CallObserver>> observers_;
  mutable std::mutex mutex_;
  std::map<const Call*, std::shared_ptr<Call>> open_;  // guarded by mutex_
  CallCounts counts_;                                  // guarded by mutex_
};

class Call : public std::enable_shared_from_this<Call> {
 public:
  struct Setup {
    std::string id;  // for the client
    const char* method = "";  // "Chat", "Complete"
    std::string prompt_text;  // CallRecord::prompt
    CallContext context;
    CallSampling sampling;
    OutputFormat format;
    std::vector<int32_t> prompt;
    RequestId first_request_id = 0;  // of sample 0; the others follow
    int32_t priority = 0;
    bool stream = true;
  };
  Call(Setup setup, Admission::Ticket ticket, const Tokenizer& tokenizer, EngineClient& engine,
       std::shared_ptr<CallBook> book);

  // Hands the samples to the engine; once.
  void start(std::function<void()> wake);

  enum class Next { kNothing, kUpdate, kEnd };
  // kUpdate: `update` is to be written; call take() again when it has been. kEnd: close the stream
  // with status(). kNothing: `wake` will tell.
  Next take(CallUpdate* update);
  // Ends the call before its time: client gone, deadline passed, server stopping. The engine drops
  // its samples before the next step. Only the first end counts.
  void end(CallStatus status);
  CallStatus status() const;
  const std::string& id() const { return setup_.id; }

 private:
  friend class CallBook;
  void on_event(int32_t index, const TokenEvent& event);
  void fail(CallStatus status);  // with mutex_ held
  // With mutex_ held: seconds since the token of the sample before this one, if there was one.
  std::optional<double> note_token(int32_t index, const TokenEvent& event);
  void cancel_requests();
  bool stalled(Clock::time_point now, Clock::duration timeout) const;
  size_t pending_bytes() const;

  Setup setup_;
  Admission::Ticket ticket_;
  EngineClient& engine_;
  const std::shared_ptr<CallBook> book_;

  mutable std::mutex mutex_;
  std::function<void()> wake_;             // set once, before any event
  std::vector<SequenceOutput> sequences_;  // guarded by mutex_, like all that follows
  std::vector<OutputDelta> pending_;       // [n]
  size_t pending_bytes_ = 0;
  int32_t unfinished_;
  CallUsage usage_;
  CallStatus status_;
  bool failed_ = false;  // status_ is final and not OK
  bool last_taken_ = false;
  bool closed_ = false;
  CallRecord record_;  // what is known when the call starts is not changed after that
  std::vector<std::optional<Clock::time_point>> last_token_;  // [n]
  std::optional<Clock::time_point>
      writing_since_;  // an update was taken and take() not called again
};

}  // namespace shoal
