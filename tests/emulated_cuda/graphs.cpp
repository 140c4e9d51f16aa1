// Stream capture and graphs. A graph is the list of calls made on the streams that took part, and its
// launch makes them again: the first stream's on the stream it is launched into, the others' on streams
// of its own.
#include <algorithm>

#include "emulated_cuda/state.h"
#include "emulated_cuda/stream_work.h"

namespace emu = shoal::emulated;
using emu::answer;

struct CUgraphExec_st {
  CUgraph_st graph;
  std::vector<std::shared_ptr<CUstream_st>> streams;  // of lanes 1...
  int device = -1;
};

namespace shoal::emulated {
namespace {

struct Graphs {
  std::vector<std::shared_ptr<Capture>> captures;  // under way
  std::vector<std::unique_ptr<CUgraph_st>> graphs;
  std::vector<std::unique_ptr<CUgraphExec_st>> execs;
};
Graphs& all() {
  static Graphs& graphs = *new Graphs;
  return graphs;
}

template <typename T>
T* find(const std::vector<std::unique_ptr<T>>& handles, T* handle) {
  for (const auto& each : handles) {
    if (each.get() == handle) return handle;
  }
  return nullptr;
}

void join(std::vector<int>& clock, const std::vector<int>& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

void append(Capture& capture, CUgraph_st::Call call) {
  std::vector<int>& clock = capture.clock(call.lane);
  ++clock[static_cast<size_t>(call.lane)];
  capture.graph.calls.push_back(std::move(call));
}

}  // namespace

std::vector<int>& Capture::clock(int lane) {
  const auto index = static_cast<size_t>(lane);
  if (lane_clock.size() <= index) lane_clock.resize(index + 1);
  if (lane_clock[index].size() <= index) lane_clock[index].resize(index + 1);
  return lane_clock[index];
}

cudaError_t unsafe_call() {
  const ApiGuard guard(api_lock());
  cudaError_t result = cudaSuccess;
  for (const auto& capture : all().captures) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal &&
        capture->thread != std::this_thread::get_id()) {
      continue;
    }
    capture->invalid = true;
    result = cudaErrorStreamCaptureUnsupported;
  }
  return result;
}

cudaError_t capture_work(CUstream_st& stream, std::function<void()> work) {
  if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
  append(*stream.capture, {CUgraph_st::Call::kWork, stream.lane, std::move(work), 0});
  return cudaSuccess;
}

cudaError_t capture_record(CUstream_st& stream, CUevent_st& event) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  event.capture = stream.capture;
  event.captured_index = capture.graph.num_events++;
  append(capture, {CUgraph_st::Call::kRecord, stream.lane, nullptr, event.captured_index});
  capture.event_clock.push_back(capture.clock(stream.lane));
  return cudaSuccess;
}

cudaError_t capture_wait(CUstream_st& stream, CUevent_st& event) {
  const auto under_way = [](const auto& capture) {
    return std::find(all().captures.begin(), all().captures.end(), capture) != all().captures.end();
  };
  if (event.capture == nullptr || !under_way(event.capture)) {
    if (stream.capture == nullptr) return cudaErrorCapturedEvent;
    if (event.capture == nullptr && event.completion == nullptr) return cudaSuccess;
    stream.capture->invalid = true;  // it would wait for what is not in the graph
    return cudaErrorStreamCaptureIsolation;
  }
  Capture& capture = *event.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  if (stream.capture != nullptr && stream.capture != event.capture) {
    capture.invalid = stream.capture->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  if (stream.capture == nullptr) {  // joins
    if (stream.shared_from_this() == device(stream.device).legacy) {
      capture.invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
    stream.capture = event.capture;
    stream.lane = capture.graph.num_lanes++;
    capture.streams.push_back(stream.shared_from_this());
  }
  join(capture.clock(stream.lane), capture.event_clock[static_cast<size_t>(event.captured_index)]);
  append(capture, {CUgraph_st::Call::kWait, stream.lane, nullptr, event.captured_index});
  return cudaSuccess;
}

}  // namespace shoal::emulated

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  const emu::ApiGuard guard(emu::api_lock());
  const auto stream = emu::find_stream(handle);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (const cudaError_t fault = emu::device(stream->device).fault; fault != cudaSuccess) {
    return answer(fault);
  }
  if (stream == emu::device(stream->device).legacy) return answer(cudaErrorStreamCaptureUnsupported);
  if (stream->capture != nullptr) return answer(cudaErrorIllegalState);
  auto capture = std::make_shared<emu::Capture>();
  capture->origin = stream.get();
  capture->thread = std::this_thread::get_id();
  capture->mode = mode;
  capture->streams.push_back(stream);
  stream->capture = capture;
  stream->lane = 0;
  emu::all().captures.push_back(std::move(capture));
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const emu::ApiGuard guard(emu::api_lock());
  *graph = nullptr;
  const auto stream = emu::find_stream(handle);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  const std::shared_ptr<emu::Capture> capture = stream->capture;
  if (capture == nullptr) return answer(cudaErrorIllegalState);
  if (capture->origin != stream.get()) return answer(cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return answer(cudaErrorStreamCaptureWrongThread);
  }
  std::erase(emu::all().captures, capture);
  for (const auto& each : capture->streams) each->capture = nullptr;
  if (capture->invalid) return answer(cudaErrorStreamCaptureInvalidated);
  std::vector<int> joined = capture->clock(0);
  joined.resize(static_cast<size_t>(capture->graph.num_lanes));
  for (int lane = 1; lane < capture->graph.num_lanes; ++lane) {
    const auto index = static_cast<size_t>(lane);
    if (joined[index] < capture->clock(lane)[index]) return answer(cudaErrorStreamCaptureUnjoined);
  }
  emu::all().graphs.push_back(std::make_unique<CUgraph_st>(std::move(capture->graph)));
  *graph = emu::all().graphs.back().get();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const emu::ApiGuard guard(emu::api_lock());
  const auto stream = emu::find_stream(handle);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  *status = stream->capture == nullptr       ? cudaStreamCaptureStatusNone
            : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t handle, unsigned long long) {
  const emu::ApiGuard guard(emu::api_lock());
  const CUgraph_st* graph = emu::find(emu::all().graphs, handle);
  if (graph == nullptr) return answer(cudaErrorInvalidValue);
  emu::all().execs.push_back(std::make_unique<CUgraphExec_st>());
  *exec = emu::all().execs.back().get();
  (*exec)->graph = *graph;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  const emu::ApiGuard guard(emu::api_lock());
  CUgraphExec_st* exec = emu::find(emu::all().execs, handle);
  const auto stream = emu::find_stream(stream_handle);
  if (exec == nullptr) return answer(cudaErrorInvalidValue);
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  if (const cudaError_t fault = emu::device(stream->device).fault; fault != cudaSuccess) {
    return answer(fault);
  }
  if (stream->capture != nullptr) {  // child graphs are not emulated
    stream->capture->invalid = true;
    return answer(cudaErrorStreamCaptureUnsupported);
  }
  if (exec->device != stream->device) {
    for (const auto& each : exec->streams) each->finish();
    exec->streams.clear();
    exec->device = stream->device;
  }
  while (static_cast<int>(exec->streams.size()) + 1 < exec->graph.num_lanes) {
    exec->streams.push_back(std::make_shared<CUstream_st>(stream->device, false));
    exec->streams.back()->start();
    emu::device(stream->device).streams.push_back(exec->streams.back());
  }
  emu::push_ordered(*stream, [] {});
  std::vector<std::shared_ptr<emu::Completion>> events(static_cast<size_t>(exec->graph.num_events));
  for (const CUgraph_st::Call& call : exec->graph.calls) {
    CUstream_st& lane =
        call.lane == 0 ? *stream : *exec->streams[static_cast<size_t>(call.lane) - 1];
    if (call.kind == CUgraph_st::Call::kWork) {  // has no event
      lane.push(call.work);
      continue;
    }
    auto& event = events[static_cast<size_t>(call.event)];
    if (call.kind == CUgraph_st::Call::kRecord) {
      event = lane.record();
    } else {
      lane.push([event] { event->wait(); }, true);
    }
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const emu::ApiGuard guard(emu::api_lock());
  const size_t erased =
      std::erase_if(emu::all().graphs, [&](const auto& each) { return each.get() == graph; });
  return answer(erased == 0 ? cudaErrorInvalidValue : cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const emu::ApiGuard guard(emu::api_lock());
  const size_t erased = std::erase_if(emu::all().execs, [&](const auto& each) {
    if (each.get() != exec) return false;
    for (const auto& stream : each->streams) stream->finish();
    return true;
  });
  return answer(erased == 0 ? cudaErrorInvalidValue : cudaSuccess);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t* nodes, size_t* count) {
  const emu::ApiGuard guard(emu::api_lock());
  const CUgraph_st* graph = emu::find(emu::all().graphs, handle);
  if (graph == nullptr || nodes != nullptr) return answer(cudaErrorInvalidValue);  // their number only
  *count = static_cast<size_t>(
      std::count_if(graph->calls.begin(), graph->calls.end(),
                    [](const auto& call) { return call.kind == CUgraph_st::Call::kWork; }));
  return cudaSuccess;
}
