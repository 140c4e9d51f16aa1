// A ProcessGroup whose ranks are threads of one process, for tests of rank 0 and workers together.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>

#include "kernels/base/error.h"
#include "parallel/process_group.h"

namespace shoal {

class ThreadGroup {
 public:
  explicit ThreadGroup(int size) : size_(size), slots_(static_cast<size_t>(size)) {}

  class Member : public ProcessGroup {
   public:
    Member(ThreadGroup& group, int rank) : group_(group), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return group_.size_; }
    void broadcast(std::vector<std::byte>& message) override {
      const auto all = group_.exchange(rank_, message);
      message = all[0];
    }
    std::vector<std::vector<std::byte>> gather(std::span<const std::byte> message) override {
      auto all = group_.exchange(rank_, {message.begin(), message.end()});
      return rank_ == 0 ? all : std::vector<std::vector<std::byte>>{};
    }
    int64_t min(int64_t value) override {
      std::vector<std::byte> bytes(sizeof value);
      std::memcpy(bytes.data(), &value, sizeof value);
      int64_t least = std::numeric_limits<int64_t>::max();
      for (const auto& b : group_.exchange(rank_, bytes)) {
        int64_t v;
        std::memcpy(&v, b.data(), sizeof v);
        least = std::min(least, v);
      }
      return least;
    }
    void barrier() override { group_.exchange(rank_, {}); }
    [[noreturn]] void abort(const std::string& reason) override { throw DeviceFault(reason); }

   private:
    ThreadGroup& group_;
    int rank_;
  };

 private:
  std::vector<std::vector<std::byte>> exchange(int rank, std::vector<std::byte> bytes) {
    std::unique_lock lock(mutex_);
    const uint64_t round = round_;
    slots_[static_cast<size_t>(rank)] = std::move(bytes);
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      result_ = slots_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round_ != round; });
    }
    return result_;  // the next round cannot end before all have come back
  }

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<std::byte>> slots_, result_;
  int arrived_ = 0;
  uint64_t round_ = 0;
};

}  // namespace shoal
