// state.h: what the emulated runtime consists of. For the files of this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace shoal::emulated {

// Something that happens once: a recorded event, the end of a piece of work.
class Completion {
 public:
  void complete();
  void wait();
  bool done();
  std::chrono::steady_clock::time_point time() const { return time_; }  // REQUIRES: done()

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::chrono::steady_clock::time_point time_;
};

struct Capture;

}  // namespace shoal::emulated

// An in-order queue of work with an OS thread of its own.
struct CUstream_st : std::enable_shared_from_this<CUstream_st> {
  CUstream_st(int device_index, bool blocks) : device(device_index), blocking(blocks) {}
  void start();
  void finish();  // the thread ends after what is queued
  // `always`: also after a fault of the device, as what others wait for must be.
  void push(std::function<void()> work, bool always = false);
  std::shared_ptr<shoal::emulated::Completion> record();
  bool idle();

  const int device;
  const bool blocking;  // orders itself with the legacy stream
  // Under api_lock().
  std::shared_ptr<shoal::emulated::Capture> capture;
  int lane = 0;

 private:
  struct Item {
    std::function<void()> work;
    bool always;
    bool marker;  // of record(): no work
  };
  void loop();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  int pending_ = 0;  // work that has not ended
  bool finished_ = false, ended_ = false;
};

struct CUevent_st {
  int device = 0;
  bool timing = true;
  std::shared_ptr<shoal::emulated::Completion> completion;  // of the last record; null: never
  std::shared_ptr<shoal::emulated::Capture> capture;        // recorded last in this capture
  int captured_index = 0;
};

// Calls as they were made on the captured streams, to be made again: a lane is a stream.
struct CUgraph_st {
  struct Call {
    enum Kind { kWork, kRecord, kWait } kind;
    int lane;
    std::function<void()> work;
    int event;  // recorded or waited for
  };
  std::vector<Call> calls;
  int num_lanes = 1, num_events = 0;
};

namespace shoal::emulated {

struct Capture {
  CUstream_st* origin;
  std::thread::id thread;
  cudaStreamCaptureMode mode;
  bool invalid = false;
  CUgraph_st graph;
  std::vector<std::shared_ptr<CUstream_st>> streams;  // by lane
  // How many calls of each lane come before what a lane calls next, and before an event.
  std::vector<std::vector<int>> lane_clock, event_clock;
  std::vector<int>& clock(int lane);
};

struct Device {
  int index = 0;
  std::atomic<cudaError_t> fault{cudaSuccess};  // sticky
  std::shared_ptr<CUstream_st> legacy;          // made when first used
  std::vector<std::shared_ptr<CUstream_st>> streams;  // all, those that still finish too
  std::vector<bool> peers;                            // enabled
};

// Guards all handles and the above. Never held while waiting for work.
std::recursive_mutex& api_lock();
using ApiGuard = std::lock_guard<std::recursive_mutex>;

int device_count();
int current_device();
Device& device(int index);
int architecture();           // 90: compute capability 9.0
size_t smem_limit();          // of a block, dynamic
size_t memory_limit();        // of a device
unsigned thread_order_seed();

// Makes the error the thread's last one, where it is one, and returns it.
cudaError_t answer(cudaError_t error);
// Says on stderr what is wrong with a call whose error code says little; returns the code.
cudaError_t explain(cudaError_t error, const std::string& text);

// ---- Streams and captures ---------------------------------------------------------------------------

std::shared_ptr<CUstream_st> find_stream(cudaStream_t handle);  // null: no such stream
// Orders it against the legacy stream, as blocking streams are.
void push_ordered(CUstream_st& stream, std::function<void()> work);
// A call that a capturing thread may not make: invalidates the captures it breaks, and says so.
cudaError_t unsafe_call();
cudaError_t synchronize(CUstream_st& stream);
void synchronize_streams(int index);         // all of a device
cudaError_t synchronize_device(int index);  // and looks at the canaries
void delay();  // as set_stream_delays() says

// The capturing side of the calls on streams and events. REQUIRES: api_lock() is held.
cudaError_t capture_work(CUstream_st& stream, std::function<void()> work);
cudaError_t capture_record(CUstream_st& stream, CUevent_st& event);
cudaError_t capture_wait(CUstream_st& stream, CUevent_st& event);

// ---- Memory -----------------------------------------------------------------------------------------

// "" or what is damaged beside the allocations of a device.
std::string damaged_canaries(int device);
// For reports: where an address lies.
std::string describe_address(const void* p);

// ---- Injected faults --------------------------------------------------------------------------------

bool allocation_fails();  // each counts
bool kernel_fails();

}  // namespace shoal::emulated
