// Streams and events.
#include <algorithm>
#include <chrono>
#include <random>

#include "emulated_cuda/block.h"
#include "emulated_cuda/control.h"
#include "emulated_cuda/state.h"
#include "emulated_cuda/stream_work.h"

namespace emu = shoal::emulated;
using emu::answer;

namespace shoal::emulated {
namespace {

struct Handles {
  std::vector<std::shared_ptr<CUstream_st>> streams;
  std::vector<std::unique_ptr<CUevent_st>> events;
};
Handles& handles() {
  static Handles& all = *new Handles;  // streams' threads use it until the process is gone
  return all;
}

struct Delays {
  std::mutex mutex;
  std::mt19937 random;
  std::atomic<int> microseconds{0};
};
Delays& delays() {
  static Delays& all = *new Delays;
  return all;
}

CUevent_st* find_event(cudaEvent_t handle) {
  for (const auto& event : handles().events) {
    if (event.get() == handle) return handle;
  }
  return nullptr;
}

}  // namespace

void set_stream_delays(unsigned seed, int microseconds) {
  const std::lock_guard guard(delays().mutex);
  delays().random.seed(seed);
  delays().microseconds = microseconds;
}

void delay() {
  const int most = delays().microseconds;
  if (most == 0) return;
  int pause;
  {
    const std::lock_guard guard(delays().mutex);
    pause = std::uniform_int_distribution<int>(0, most)(delays().random);
  }
  std::this_thread::sleep_for(std::chrono::microseconds(pause));
}

void Completion::complete() {
  const std::lock_guard guard(mutex_);
  time_ = std::chrono::steady_clock::now();
  done_ = true;
  changed_.notify_all();
}

void Completion::wait() {
  std::unique_lock guard(mutex_);
  changed_.wait(guard, [&] { return done_; });
}

bool Completion::done() {
  const std::lock_guard guard(mutex_);
  return done_;
}

std::shared_ptr<CUstream_st> find_stream(cudaStream_t handle) {
  const ApiGuard guard(api_lock());
  if (handle == nullptr || handle == cudaStreamLegacy) {
    Device& here = device(current_device());
    if (here.legacy == nullptr) {
      here.legacy = std::make_shared<CUstream_st>(here.index, true);
      here.legacy->start();
      here.streams.push_back(here.legacy);
    }
    return here.legacy;
  }
  for (const auto& stream : handles().streams) {
    if (stream.get() == handle) return stream;
  }
  return nullptr;
}

int device_of(cudaStream_t handle) {
  const auto stream = find_stream(handle);
  return stream == nullptr ? -1 : stream->device;
}

void push_ordered(CUstream_st& stream, std::function<void()> work) {
  Device& here = device(stream.device);
  if (stream.blocking && here.legacy != nullptr) {
    for (const auto& other : here.streams) {
      if (!other->blocking || other.get() == &stream) continue;
      if (&stream != here.legacy.get() && other != here.legacy) continue;
      stream.push([before = other->record()] { before->wait(); }, true);
    }
  }
  stream.push(std::move(work));
}

cudaError_t enqueue(cudaStream_t handle, std::function<void()> work) {
  const ApiGuard guard(api_lock());
  const auto stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (const cudaError_t fault = device(stream->device).fault; fault != cudaSuccess) return fault;
  if (stream->capture != nullptr) return capture_work(*stream, std::move(work));
  if (handle == nullptr || handle == cudaStreamLegacy) {
    for (const auto& other : device(stream->device).streams) {
      if (other->blocking && other->capture != nullptr) {
        other->capture->invalid = true;
        return cudaErrorStreamCaptureImplicit;
      }
    }
  }
  push_ordered(*stream, std::move(work));
  return cudaSuccess;
}

cudaError_t synchronize(CUstream_st& stream) {
  stream.record()->wait();
  return device(stream.device).fault;
}

void synchronize_streams(int index) {
  std::vector<std::shared_ptr<Completion>> all;
  {
    const ApiGuard guard(api_lock());
    for (const auto& stream : device(index).streams) all.push_back(stream->record());
  }
  for (const auto& completion : all) completion->wait();
}

cudaError_t synchronize_device(int index) {
  synchronize_streams(index);
  const std::string damage = damaged_canaries(index);
  if (!damage.empty()) fault_device(index, cudaErrorIllegalAddress, damage);
  return device(index).fault;
}

}  // namespace shoal::emulated

// Detached: it ends by itself after finish(), and a stream that hangs must not hang its destruction.
void CUstream_st::start() {
  std::thread([self = shared_from_this()] { self->loop(); }).detach();
}

void CUstream_st::finish() {
  const std::lock_guard guard(mutex_);
  finished_ = true;
  changed_.notify_all();
}

void CUstream_st::push(std::function<void()> work, bool always) {
  const std::lock_guard guard(mutex_);
  queue_.push_back({std::move(work), always, false});
  ++pending_;
  changed_.notify_all();
}

std::shared_ptr<emu::Completion> CUstream_st::record() {
  auto completion = std::make_shared<emu::Completion>();
  const std::lock_guard guard(mutex_);
  if (ended_) {
    completion->complete();
  } else {
    queue_.push_back({[completion] { completion->complete(); }, true, true});
    changed_.notify_all();
  }
  return completion;
}

bool CUstream_st::idle() {
  const std::lock_guard guard(mutex_);
  return pending_ == 0;
}

void CUstream_st::loop() {
  cudaSetDevice(device);
  std::unique_lock guard(mutex_);
  for (;;) {
    changed_.wait(guard, [&] { return finished_ || !queue_.empty(); });
    if (queue_.empty()) break;
    Item item = std::move(queue_.front());
    queue_.pop_front();
    guard.unlock();
    try {
      if (!item.always) emu::delay();
      if (item.always || emu::device(device).fault == cudaSuccess) item.work();
    } catch (const emu::KernelFault& e) {
      emu::fault_device(device, e.error, e.what());
    } catch (const std::exception& e) {
      emu::fault_device(device, cudaErrorLaunchFailure, e.what());
    }
    item.work = nullptr;
    guard.lock();
    if (!item.marker) --pending_;
  }
  ended_ = true;
  guard.unlock();
  const emu::ApiGuard api(emu::api_lock());
  std::erase_if(emu::device(device).streams, [&](const auto& s) { return s.get() == this; });
}

// ---- Streams ---------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) return answer(cudaErrorInvalidValue);
  const emu::ApiGuard guard(emu::api_lock());
  emu::Device& here = emu::device(emu::current_device());
  if (here.fault != cudaSuccess) return answer(here.fault);
  auto made = std::make_shared<CUstream_st>(here.index, flags == cudaStreamDefault);
  made->start();
  here.streams.push_back(made);
  emu::handles().streams.push_back(made);
  *stream = made.get();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const emu::ApiGuard guard(emu::api_lock());
  const auto stream = emu::find_stream(handle);
  if (stream == nullptr || handle == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) stream->capture->invalid = true;
  std::erase(emu::handles().streams, stream);
  stream->finish();
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const auto stream = emu::find_stream(handle);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  return answer(emu::synchronize(*stream));
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const auto stream = emu::find_stream(handle);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  if (!stream->idle()) return answer(cudaErrorNotReady);
  return answer(emu::device(stream->device).fault);
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* index) {
  *index = emu::device_of(handle);
  return answer(*index < 0 ? cudaErrorInvalidResourceHandle : cudaSuccess);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return answer(emu::enqueue(stream, [=] { function(data); }));
}

// ---- Events ----------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const emu::ApiGuard guard(emu::api_lock());
  auto made = std::make_unique<CUevent_st>();
  made->device = emu::current_device();
  made->timing = (flags & cudaEventDisableTiming) == 0;
  *event = made.get();
  emu::handles().events.push_back(std::move(made));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const emu::ApiGuard guard(emu::api_lock());
  const size_t erased =
      std::erase_if(emu::handles().events, [&](const auto& e) { return e.get() == event; });
  return answer(erased == 0 ? cudaErrorInvalidResourceHandle : cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  const emu::ApiGuard guard(emu::api_lock());
  CUevent_st* event = emu::find_event(handle);
  const auto stream = emu::find_stream(stream_handle);
  if (event == nullptr || stream == nullptr || event->device != stream->device) {
    return answer(cudaErrorInvalidResourceHandle);
  }
  if (stream->capture != nullptr) return answer(emu::capture_record(*stream, *event));
  event->capture = nullptr;
  event->completion = stream->record();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned) {
  const emu::ApiGuard guard(emu::api_lock());
  CUevent_st* event = emu::find_event(handle);
  const auto stream = emu::find_stream(stream_handle);
  if (event == nullptr || stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr || event->capture != nullptr) {
    return answer(emu::capture_wait(*stream, *event));
  }
  if (event->completion != nullptr) {
    stream->push([before = event->completion] { before->wait(); }, true);
  }
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  const emu::ApiGuard guard(emu::api_lock());
  const CUevent_st* event = emu::find_event(handle);
  if (event == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
  if (event->capture != nullptr) return answer(cudaErrorCapturedEvent);
  if (event->completion != nullptr && !event->completion->done()) return answer(cudaErrorNotReady);
  return answer(emu::device(event->device).fault);
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  std::shared_ptr<emu::Completion> completion;
  int index = 0;
  {
    const emu::ApiGuard guard(emu::api_lock());
    const CUevent_st* event = emu::find_event(handle);
    if (event == nullptr) return answer(cudaErrorInvalidResourceHandle);
    if (const cudaError_t error = emu::unsafe_call(); error != cudaSuccess) return answer(error);
    if (event->capture != nullptr) return answer(cudaErrorCapturedEvent);
    completion = event->completion;
    index = event->device;
  }
  if (completion != nullptr) completion->wait();
  return answer(emu::device(index).fault);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const emu::ApiGuard guard(emu::api_lock());
  CUevent_st *start = emu::find_event(from), *end = emu::find_event(to);
  if (start == nullptr || end == nullptr || !start->timing || !end->timing ||
      start->completion == nullptr || end->completion == nullptr) {
    return answer(cudaErrorInvalidResourceHandle);
  }
  if (!start->completion->done() || !end->completion->done()) return answer(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->completion->time() -
                                                           start->completion->time())
                      .count();
  return cudaSuccess;
}
