#include "parallel/mpi/mpi_group.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <thread>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr int kTagBroadcast = 1;
constexpr int kTagGather = 2;

// A step follows the last one within some tens of microseconds: poll that long without sleeping.
constexpr std::chrono::microseconds kSpin{200};
// Then sleep for a part of the time waited so far, so that the end of a wait is noticed late by no
// more than that part of it: 20 us (shorter is lost in the kernel's timer slack) to 10 ms. One wake
// costs 15 to 30 us of CPU time, cold caches included: a wake every 2 ms was measured as 0.6 to
// 0.9 % of a core, every 10 ms as 0.2 to 0.4 %.
constexpr int kSleepPart = 16;
constexpr std::chrono::microseconds kShortestSleep{20};
constexpr std::chrono::microseconds kLongestSleep{10'000};

// Broadcasts in flight before rank 0 waits for the slowest rank. Ranks run in step, so that more
// than two mean that one of them has stopped taking plans.
constexpr size_t kMostOutgoing = 16;

template <typename Done>
void wait_asleep(const Done& done) {
  using std::chrono::steady_clock;
  const auto start = steady_clock::now();
  while (!done()) {
    const auto waited =
        std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - start);
    if (waited < kSpin) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::clamp(waited / kSleepPart, kShortestSleep, kLongestSleep));
    }
  }
}

void wait_asleep(MPI_Request& request, const char* operation) {
  wait_asleep([&] {
    int done = 0;
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), operation);
    return done != 0;
  });
}

void check_size(size_t bytes) {
  SHOAL_CHECK(bytes <= kMaxControlMessageBytes, "a control message of {} bytes; at most {}", bytes,
              kMaxControlMessageBytes);
}

}  // namespace

void check_mpi(int rc, const char* operation) {
  if (rc == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(rc, text, &length);
  throw DeviceFault(fmt::format("{} failed: {}", operation, text));
}

MpiRuntime::MpiRuntime() : exceptions_at_start_(std::uncaught_exceptions()) {
  // Serialised: the thread that runs the engine need not be the one that constructs this.
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_SERIALIZED) {
    throw DeviceFault("this MPI library cannot be called from more than one thread");
  }
}

MpiRuntime::~MpiRuntime() {
  if (std::uncaught_exceptions() == exceptions_at_start_) MPI_Finalize();
}

int MpiRuntime::launched_ranks() {
  const char* text = std::getenv("OMPI_COMM_WORLD_SIZE");
  return text == nullptr ? 1 : std::max(1, std::atoi(text));
}

MpiCommunicator::MpiCommunicator() {
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

// Not MPI_Comm_free: that is collective, and the others may be gone. MPI_Finalize frees it.
MpiCommunicator::~MpiCommunicator() = default;

MpiProcessGroup::MpiProcessGroup() : exceptions_at_start_(std::uncaught_exceptions()) {}

MpiProcessGroup::~MpiProcessGroup() {
  // MPI still reads the bytes of the last plan, so wait for those who sleep. After a failure nobody
  // may come to take them; MPI is not called any more then, so that they can go.
  if (std::uncaught_exceptions() != exceptions_at_start_) return;
  try {
    reap_broadcasts(0);
  } catch (const DeviceFault& fault) {
    spdlog::error("{}", fault.what());
  }
}

void MpiProcessGroup::reap_broadcasts(size_t keep) {
  while (!outgoing_.empty()) {
    Outgoing& oldest = outgoing_.front();
    const auto sent = [&] {
      int done = 0;
      check_mpi(MPI_Testall(static_cast<int>(oldest.requests.size()), oldest.requests.data(), &done,
                            MPI_STATUSES_IGNORE),
                "broadcast");
      return done != 0;
    };
    if (outgoing_.size() > keep) {
      wait_asleep(sent);
    } else if (!sent()) {
      return;
    }
    outgoing_.pop_front();
  }
}

std::vector<std::byte> MpiProcessGroup::receive(int from, int tag) {
  MPI_Status status;
  wait_asleep([&] {
    int arrived = 0;
    check_mpi(MPI_Iprobe(from, tag, comm_.get(), &arrived, &status), "MPI_Iprobe");
    return arrived != 0;
  });
  int bytes = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
  if (bytes < 0 || static_cast<size_t>(bytes) > kMaxControlMessageBytes) {
    throw DeviceFault(fmt::format("rank {} sent a control message of {} bytes", from, bytes));
  }
  std::vector<std::byte> message(bytes);
  check_mpi(MPI_Recv(message.data(), bytes, MPI_BYTE, from, tag, comm_.get(), MPI_STATUS_IGNORE),
            "MPI_Recv");
  return message;
}

void MpiProcessGroup::broadcast(std::vector<std::byte>& message) {
  if (rank() != 0) {
    message = receive(0, kTagBroadcast);
    return;
  }
  check_size(message.size());
  reap_broadcasts(kMostOutgoing - 1);
  Outgoing& outgoing = outgoing_.emplace_back();
  outgoing.message = message;
  outgoing.requests.assign(size() - 1, MPI_REQUEST_NULL);
  for (int r = 1; r < size(); ++r) {
    check_mpi(MPI_Isend(outgoing.message.data(), static_cast<int>(message.size()), MPI_BYTE, r,
                        kTagBroadcast, comm_.get(), &outgoing.requests[r - 1]),
              "MPI_Isend");
  }
}

std::vector<std::vector<std::byte>> MpiProcessGroup::gather(std::span<const std::byte> message) {
  check_size(message.size());
  std::vector<std::vector<std::byte>> messages;
  if (rank() != 0) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, 0, kTagGather,
                        comm_.get(), &request),
              "MPI_Isend");
    wait_asleep(request, "gather");
    return messages;
  }
  messages.emplace_back(message.begin(), message.end());
  for (int r = 1; r < size(); ++r) messages.push_back(receive(r, kTagGather));
  return messages;
}

int64_t MpiProcessGroup::min(int64_t value) {
  int64_t smallest = value;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(&value, &smallest, 1, MPI_INT64_T, MPI_MIN, comm_.get(), &request),
            "MPI_Iallreduce");
  wait_asleep(request, "min");
  return smallest;
}

void MpiProcessGroup::barrier() {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(comm_.get(), &request), "MPI_Ibarrier");
  wait_asleep(request, "barrier");
}

void MpiProcessGroup::abort(const std::string& reason) {
  spdlog::critical("rank {} ends all {} ranks: {}", rank(), size(), reason);
  spdlog::default_logger()->flush();
  MPI_Abort(comm_.get(), EXIT_FAILURE);
  std::terminate();  // MPI_Abort does not return
}

}  // namespace shoal
