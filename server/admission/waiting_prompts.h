// WaitingPrompts: the prompts of calls that have no token yet, by priority and client, and which of them come
// before a new one for sure. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>

namespace shoal {

class WaitingPrompts {
 public:
  struct Ahead {
    int64_t tokens = 0;     // without the first prompt of each queue: it may be almost done
    int64_t sequences = 0;
  };
  // Of a new call with this priority and client: what has a better (lower) priority, and the client's own.
  Ahead ahead_of(int32_t priority, uint64_t client) const;

  // `number` rises from call to call. Its sequences share the prompt.
  void add(int32_t priority, uint64_t client, uint64_t number, int64_t tokens, int64_t sequences);
  void sequence_left(int32_t priority, uint64_t client);  // has its first token, or has ended without
  void prompt_done(int32_t priority, uint64_t client, uint64_t number);  // at the first of these
  bool empty() const { return queues_.empty(); }

 private:
  struct Queue {
    std::map<uint64_t, int64_t> prompts;  // tokens, by number
    int64_t tokens = 0, sequences = 0;
  };
  void drop_if_empty(int32_t priority, uint64_t client);

  std::map<int32_t, std::map<uint64_t, Queue>> queues_;  // by priority, by client
};

}  // namespace shoal
