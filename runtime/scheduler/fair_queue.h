// FairQueue: the order in which waiting sequences get their turn. By priority (lower first); within
// one, those that had a turn before (preempted, or waiting for files) in the order of those turns;
// then the clients take turns, each with its own sequences in order of arrival: next is the client
// that has been served the fewest tokens, run of prompts and generated, and among equals the one
// whose sequence came first. With one client that is the order of arrival.
//
// What a client has been served counts while others compete with it: one that begins to wait is
// taken to have been served as much as the client whose turn was last. So nobody saves up turns by
// being idle, and nobody who waits is overtaken for ever: whoever is served moves back. Between two
// clients that both wait all the time, served tokens differ by no more than what both can have
// admitted at once (a sequence that has been admitted is not taken back for fairness).
//
// Each priority counts for itself, and forgets when it has no sequences. Pure bookkeeping, of the
// scheduler's thread. Entries belong to the caller, and live until remove().
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <tuple>

#include "kernels/base/error.h"

namespace shoal {

class FairQueue {
 public:
  struct Entry {
    int32_t priority = 0;
    uint64_t client = 0;
    uint64_t arrival = 0;  // unique
    uint64_t turn = 0;     // the queue's: when it had its first turn; 0: not yet
    bool waiting = false;  // the queue's
  };
  // Of sequences that have had a turn: first is who may take pages from those after it.
  struct ByTurn {
    bool operator()(const Entry* a, const Entry* b) const {
      return std::tie(a->priority, a->turn) < std::tie(b->priority, b->turn);
    }
  };

  void add(Entry& entry);     // a new sequence; it waits
  void remove(Entry& entry);  // has ended, waiting or not
  void start(Entry& entry);   // its turn has come: it waits no more
  // Its turn has come, but it goes on waiting, among those that had one. Once.
  void give_turn(Entry& entry);
  void wait(Entry& entry);  // one that was started waits again
  void charge(const Entry& entry, int64_t tokens);

  // Whether one that has had no turn is not the next of its priority's (any more).
  bool overtaken(const Entry& entry) const;
  int64_t waiting() const { return waiting_; }
  // Calls `visit` for what waits, in order, until it says false. It may start the entry or give it
  // its turn, and must do one of both with one that has had no turn, or say false.
  template <typename Visit>
  void visit(Visit visit);

 private:
  struct ByArrival {
    bool operator()(const Entry* a, const Entry* b) const { return a->arrival < b->arrival; }
  };
  struct Account {
    int64_t served = 0;     // tokens
    int64_t sequences = 0;  // not ended
    std::set<Entry*, ByArrival> queue;  // without a turn yet
  };
  struct Level {
    Entry* next() const;  // of those without a turn; nullptr: none

    std::set<Entry*, ByTurn> resumed;
    std::map<uint64_t, Account> accounts;
    int64_t served = 0;  // by the client whose turn was last, before it
    int64_t sequences = 0;
  };
  Level& level_of(const Entry& entry) { return levels_.at(entry.priority); }

  std::map<int32_t, Level> levels_;
  uint64_t turns_ = 0;
  int64_t waiting_ = 0;
};

template <typename Visit>
void FairQueue::visit(Visit visit) {
  for (auto& [priority, level] : levels_) {
    for (auto it = level.resumed.begin(); it != level.resumed.end();) {
      Entry& entry = **it++;
      if (!visit(entry)) return;
    }
    while (Entry* entry = level.next()) {
      if (!visit(*entry)) return;
      SHOAL_CHECK(entry->turn != 0, "arrival {} was visited and left", entry->arrival);
    }
  }
}

}  // namespace shoal
