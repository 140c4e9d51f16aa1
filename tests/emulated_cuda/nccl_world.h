// nccl_world.h: the shared memory between the ranks (processes or threads) of one communicator of
// the NCCL stand-in. A file without a name (memfd), found through /proc by the id that
// ncclGetUniqueId gave: the kernel frees it with the last process that has it, however that ends.
//
// Every ordered pair of ranks has a ring of bytes, in which messages follow each other, each behind
// a header that says what it is. Nothing here notices that another rank is gone, exactly as between
// GPUs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace shoal::emulated {

constexpr int kMaxNcclRanks = 16;

// What a message is, for the receiver to compare with what it expects.
struct NcclMessage {
  uint32_t verb = 0;
  uint32_t dtype = 0;
  uint64_t bytes = 0;
  bool operator==(const NcclMessage&) const = default;
};

struct NcclTransfer {
  int peer = 0;
  NcclMessage message;
  std::byte* data = nullptr;
};

class NcclWorld {
 public:
  struct Id {  // the beginning of an ncclUniqueId
    uint64_t nonce;
    int32_t pid;
    int32_t fd;
  };
  static bool create(Id& id);

  // Null and a reason when the memory is gone or the call contradicts what other ranks said.
  static std::shared_ptr<NcclWorld> join(const Id& id, int ranks, int rank, int device,
                                         std::string& reason);
  ~NcclWorld();
  NcclWorld(const NcclWorld&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool all_joined();
  bool duplicate_devices() const;
  void finalize();  // this rank will send nothing more
  bool all_finalized() const;

  // Carries out all transfers at once, those with one peer in their order. Returns "" at the end or
  // when `aborted` turns true, else what a message was instead of the expected.
  std::string exchange(const std::vector<NcclTransfer>& sends,
                       const std::vector<NcclTransfer>& recvs, const std::atomic<bool>& aborted);

 private:
  struct Ring;
  struct Shared;
  struct Cursor;
  NcclWorld(Shared* shared, int size, int rank, const Id& id)
      : shared_(shared), size_(size), rank_(rank), id_(id) {}
  Ring& ring(int from, int to) const;
  bool push(const NcclTransfer& transfer, Cursor& cursor) const;
  bool pull(const NcclTransfer& transfer, Cursor& cursor, std::string& mismatch) const;

  Shared* shared_;
  const int size_, rank_;
  const Id id_;
};

}  // namespace shoal::emulated
