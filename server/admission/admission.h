// Admission: whether a call that is in order may begin now. Refused at once, with when to try again, is what
// would only wait in vain: beyond --max-queue, beyond its client's own limits, or with a deadline that its
// first token cannot make (first_token.h). What is admitted holds a Ticket until it has ended; the tickets
// that are held are all that this knows of the load.
//
// Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "server/admission/finish_rate.h"
#include "server/admission/first_token.h"
#include "server/admission/token_bucket.h"
#include "server/admission/waiting_prompts.h"
#include "server/call_context.h"
#include "server/call_status.h"

namespace shoal {

struct AdmissionOptions {
  int64_t max_sequences = 1024;  // --max-queue: alive at once, waiting ones included
  int64_t max_running = 0;       // --max-num-seqs: those in one step; 0: not known
  std::function<std::chrono::steady_clock::time_point()> now = std::chrono::steady_clock::now;
};

// What the engine has measured; 0: nothing yet.
struct EngineRates {
  double prompt_token_seconds = 0, decode_step_seconds = 0;
  double hit_rate = 0;  // of the prefix cache
};

class Admission : public std::enable_shared_from_this<Admission> {
 public:
  explicit Admission(AdmissionOptions options);

  struct Ask {
    std::shared_ptr<const Client> client;  // not null
    int32_t n = 1;
    int32_t priority = 0;
    int64_t prompt_tokens = 0;
    std::optional<double> seconds_left;  // until the call's deadline
    EngineRates rates;                   // used with seconds_left
  };

  // One admitted call's place. Gives back what it still holds when it is destroyed. Thread-safe, except for
  // moving it.
  class Ticket {
   public:
    Ticket() = default;  // holds nothing
    Ticket(Ticket&&) = default;
    // What this held goes with `other`.
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(admission_, other.admission_);
      std::swap(place_, other.place_);
      return *this;
    }
    ~Ticket();
    // Sample [0, n) has its first token; has ended, with or without. Each once.
    void started(int32_t sample);
    void ended(int32_t sample);

   private:
    friend class Admission;
    enum class Sample : uint8_t { kWaiting, kStarted, kEnded };
    struct Place {
      uint64_t number = 0;
      uint64_t client = 0;
      int32_t priority = 0;
      std::vector<Sample> samples;
    };
    std::shared_ptr<Admission> admission_;
    std::unique_ptr<Place> place_;  // guarded by the admission's mutex
  };

  // Throws CallRefused: RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED; InvalidInput where n can never be admitted.
  // The admission must be owned by a shared_ptr.
  Ticket admit(const Ask& ask);
  int64_t sequences() const;  // alive
  bool idle() const;          // nothing is held; for tests

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct ClientState {
    int64_t sequences = 0;
    TokenBucket bucket;
  };
  // All with mutex_ held.
  void check_client(const Ask& ask, Time now);
  void check_queue(const Ask& ask, Time now);
  void check_deadline(const Ask& ask, Time now) const;
  // Until so many sequences have finished, from `after` on.
  static std::chrono::milliseconds hint(double sequences, std::optional<double> per_second,
                                        std::chrono::duration<double> after = {});
  int64_t busy_from() const;
  void end_sample(Ticket::Place& place, Ticket::Sample& sample);
  void leave_waiting(Ticket::Place& place);

  const AdmissionOptions options_;
  mutable std::mutex mutex_;
  int64_t sequences_ = 0, started_ = 0;
  uint64_t numbers_ = 0;
  WaitingPrompts waiting_;
  FinishRate finishes_;
  Time promised_{};  // when the last caller who was told that the queue is full may come back
  std::map<uint64_t, ClientState> clients_;
};

}  // namespace shoal
