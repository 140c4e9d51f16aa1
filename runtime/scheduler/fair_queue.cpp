#include "runtime/scheduler/fair_queue.h"

#include <algorithm>

namespace shoal {

FairQueue::Entry* FairQueue::Level::next() const {
  Entry* best = nullptr;
  int64_t least = 0;
  for (const auto& [client, account] : accounts) {
    if (account.queue.empty()) continue;
    Entry* first = *account.queue.begin();
    if (best == nullptr ||
        std::tie(account.served, first->arrival) < std::tie(least, best->arrival)) {
      best = first;
      least = account.served;
    }
  }
  return best;
}

void FairQueue::add(Entry& entry) {
  Level& level = levels_[entry.priority];
  if (!level.accounts.contains(entry.client)) {
    // An idle client that is owed nothing and owes nothing is as good as a new one.
    std::erase_if(level.accounts, [&](const auto& item) {
      return item.second.sequences == 0 && item.second.served <= level.served;
    });
  }
  Account& account = level.accounts[entry.client];
  if (account.queue.empty()) account.served = std::max(account.served, level.served);
  account.queue.insert(&entry);
  ++account.sequences;
  ++level.sequences;
  entry.waiting = true;
  ++waiting_;
}

void FairQueue::give_turn(Entry& entry) {
  SHOAL_CHECK(entry.waiting && entry.turn == 0, "arrival {} has had its turn", entry.arrival);
  Level& level = level_of(entry);
  Account& account = level.accounts.at(entry.client);
  account.queue.erase(&entry);
  level.served = std::max(level.served, account.served);
  entry.turn = ++turns_;
  level.resumed.insert(&entry);
}

void FairQueue::start(Entry& entry) {
  if (entry.turn == 0) give_turn(entry);
  level_of(entry).resumed.erase(&entry);
  entry.waiting = false;
  --waiting_;
}

void FairQueue::wait(Entry& entry) {
  SHOAL_CHECK(!entry.waiting && entry.turn != 0, "arrival {} was not started", entry.arrival);
  level_of(entry).resumed.insert(&entry);
  entry.waiting = true;
  ++waiting_;
}

void FairQueue::remove(Entry& entry) {
  Level& level = level_of(entry);
  Account& account = level.accounts.at(entry.client);
  if (entry.waiting) {
    if (entry.turn == 0) {
      account.queue.erase(&entry);
    } else {
      level.resumed.erase(&entry);
    }
    entry.waiting = false;
    --waiting_;
  }
  --account.sequences;
  if (--level.sequences == 0) levels_.erase(entry.priority);
}

void FairQueue::charge(const Entry& entry, int64_t tokens) {
  level_of(entry).accounts.at(entry.client).served += tokens;
}

bool FairQueue::overtaken(const Entry& entry) const {
  return entry.turn == 0 && levels_.at(entry.priority).next() != &entry;
}

}  // namespace shoal
