#include "tests/emulated_cuda/nccl_world.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

namespace shoal::emulated {
namespace {

// Above the small messages of tests, below what makes 16 x 16 rings of it large; pages that nothing
// was written to take no memory.
constexpr size_t kRingBytes = size_t{64} << 10;

}  // namespace

struct NcclWorld::Ring {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
  alignas(64) std::byte data[kRingBytes];
};

struct NcclWorld::Shared {
  uint64_t nonce;
  std::atomic<int32_t> size;  // 0: nobody has joined
  std::atomic<int32_t> joined, finalized;
  std::atomic<int32_t> device[kMaxNcclRanks];  // 1 + index; 0: that rank has not joined
  Ring rings[kMaxNcclRanks][kMaxNcclRanks];
};

// How far a transfer has come.
struct NcclWorld::Cursor {
  bool header_done = false;
  size_t bytes = 0;
};

bool NcclWorld::create(Id& id) {
  const int fd = memfd_create("emulated-nccl", MFD_CLOEXEC);
  if (fd < 0) return false;
  if (ftruncate(fd, sizeof(Shared)) != 0) {
    close(fd);
    return false;
  }
  uint64_t nonce = 0;
  if (getrandom(&nonce, sizeof(nonce), 0) != sizeof(nonce) ||
      pwrite(fd, &nonce, sizeof(nonce), 0) != sizeof(nonce)) {
    close(fd);
    return false;
  }
  id = {nonce, static_cast<int32_t>(getpid()), fd};
  return true;
}

std::shared_ptr<NcclWorld> NcclWorld::join(const Id& id, int ranks, int rank, int device,
                                           std::string& reason) {
  const std::string path = fmt::format("/proc/{}/fd/{}", id.pid, id.fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  void* memory = MAP_FAILED;
  if (fd >= 0) {
    memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
  }
  if (memory == MAP_FAILED || static_cast<Shared*>(memory)->nonce != id.nonce) {
    if (memory != MAP_FAILED) munmap(memory, sizeof(Shared));
    reason = "the rank that made the unique id is gone";
    return nullptr;
  }
  std::shared_ptr<NcclWorld> world(new NcclWorld(static_cast<Shared*>(memory), ranks, rank, id));
  int32_t said = 0;
  if (!world->shared_->size.compare_exchange_strong(said, ranks) && said != ranks) {
    reason = fmt::format("rank {} says {} ranks, others say {}", rank, ranks, said);
    return nullptr;
  }
  int32_t none = 0;
  if (!world->shared_->device[rank].compare_exchange_strong(none, 1 + device)) {
    reason = fmt::format("rank {} joined twice", rank);
    return nullptr;
  }
  ++world->shared_->joined;
  return world;
}

NcclWorld::~NcclWorld() { munmap(shared_, sizeof(Shared)); }

bool NcclWorld::all_joined() {
  if (shared_->joined.load() != size_) return false;
  // Everybody has the memory: the maker's descriptor, which only led there, is no longer needed.
  if (rank_ == 0 && id_.pid == static_cast<int32_t>(getpid())) close(id_.fd);
  return true;
}

bool NcclWorld::duplicate_devices() const {
  for (int r = 0; r < size_; ++r) {
    for (int s = 0; s < r; ++s) {
      if (shared_->device[r].load() == shared_->device[s].load()) return true;
    }
  }
  return false;
}

void NcclWorld::finalize() { ++shared_->finalized; }
bool NcclWorld::all_finalized() const { return shared_->finalized.load() >= size_; }

NcclWorld::Ring& NcclWorld::ring(int from, int to) const { return shared_->rings[from][to]; }

// Writes what fits; whether the transfer is complete.
bool NcclWorld::push(const NcclTransfer& transfer, Cursor& cursor) const {
  Ring& out = ring(rank_, transfer.peer);
  uint64_t written = out.written.load(std::memory_order_relaxed);
  const auto room = [&] {
    return kRingBytes - static_cast<size_t>(written - out.read.load(std::memory_order_acquire));
  };
  const auto write = [&](const void* data, size_t bytes) {
    const size_t at = written % kRingBytes, first = std::min(bytes, kRingBytes - at);
    std::memcpy(out.data + at, data, first);
    std::memcpy(out.data, static_cast<const std::byte*>(data) + first, bytes - first);
    written += bytes;
  };
  if (!cursor.header_done) {
    if (room() < sizeof(NcclMessage)) return false;
    write(&transfer.message, sizeof(NcclMessage));
    cursor.header_done = true;
  }
  const size_t bytes = std::min<size_t>(room(), transfer.message.bytes - cursor.bytes);
  write(transfer.data + cursor.bytes, bytes);
  cursor.bytes += bytes;
  out.written.store(written, std::memory_order_release);
  return cursor.bytes == transfer.message.bytes;
}

bool NcclWorld::pull(const NcclTransfer& transfer, Cursor& cursor, std::string& mismatch) const {
  Ring& in = ring(transfer.peer, rank_);
  uint64_t read = in.read.load(std::memory_order_relaxed);
  const auto there = [&] {
    return static_cast<size_t>(in.written.load(std::memory_order_acquire) - read);
  };
  const auto take = [&](void* data, size_t bytes) {
    const size_t at = read % kRingBytes, first = std::min(bytes, kRingBytes - at);
    std::memcpy(data, in.data + at, first);
    std::memcpy(static_cast<std::byte*>(data) + first, in.data, bytes - first);
    read += bytes;
  };
  if (!cursor.header_done) {
    if (there() < sizeof(NcclMessage)) return false;
    NcclMessage message;
    take(&message, sizeof(message));
    if (message != transfer.message) {
      mismatch = fmt::format(
          "rank {} expects verb {} type {} of {} bytes from rank {}, which sent verb {} type {} of "
          "{}",
          rank_, transfer.message.verb, transfer.message.dtype, transfer.message.bytes,
          transfer.peer, message.verb, message.dtype, message.bytes);
      return false;
    }
    cursor.header_done = true;
  }
  const size_t bytes = std::min<size_t>(there(), transfer.message.bytes - cursor.bytes);
  take(transfer.data + cursor.bytes, bytes);
  cursor.bytes += bytes;
  in.read.store(read, std::memory_order_release);
  return cursor.bytes == transfer.message.bytes;
}

std::string NcclWorld::exchange(const std::vector<NcclTransfer>& sends,
                                const std::vector<NcclTransfer>& recvs,
                                const std::atomic<bool>& aborted) {
  // Per peer: its transfers in order, and how many of them are done.
  struct Queue {
    std::vector<const NcclTransfer*> transfers;
    size_t done = 0;
    Cursor cursor;
  };
  std::vector<Queue> out(size_), in(size_);
  for (const NcclTransfer& send : sends) out[send.peer].transfers.push_back(&send);
  for (const NcclTransfer& recv : recvs) in[recv.peer].transfers.push_back(&recv);
  std::string mismatch;
  const auto advance = [&](Queue& queue, const auto& step) {  // whether something moved
    bool moved = false;
    while (queue.done < queue.transfers.size()) {
      const size_t before = queue.cursor.bytes;
      const bool complete = step(*queue.transfers[queue.done], queue.cursor);
      moved |= complete || queue.cursor.bytes != before;
      if (!complete) break;
      ++queue.done;
      queue.cursor = {};
    }
    return moved;
  };
  for (int64_t idle = 0;;) {
    if (aborted.load()) return "";
    bool moved = false, complete = true;
    for (int peer = 0; peer < size_; ++peer) {
      moved |= advance(out[peer], [&](const NcclTransfer& t, Cursor& c) { return push(t, c); });
      moved |=
          advance(in[peer], [&](const NcclTransfer& t, Cursor& c) { return pull(t, c, mismatch); });
      if (!mismatch.empty()) return mismatch;
      complete &= out[peer].done == out[peer].transfers.size() &&
                  in[peer].done == in[peer].transfers.size();
    }
    if (complete) return "";
    // Ranks share few cores: make way at once, and sleep when the others take long.
    idle = moved ? 0 : idle + 1;
    if (idle < 100) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(std::min<int64_t>(idle, 500)));
    }
  }
}

}  // namespace shoal::emulated
