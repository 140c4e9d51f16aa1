// stream_work.h: how the stand-ins for libraries (cuBLASLt, NCCL) put their work onto emulated streams.
// Any thread may call these.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

namespace shoal::emulated {

// Appends `work` to the stream, or to the graph that the stream is being captured into (it then runs at
// every launch of the graph, so it must own what it needs). It runs on the stream's own OS thread, with
// the stream's device current; it is skipped after a fault of the device, and what it throws becomes one.
// It may block (a collective that waits for its peers): that holds up this stream alone.
// Fails as a kernel launch would: bad handle, invalidated capture, faulted device.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

// The device a stream belongs to (a null stream: the current device), or -1 for what is no stream.
int device_of(cudaStream_t stream);

// Whether [p, p + bytes) lies in one live allocation of device memory (any device of this process, or a
// peer's opened by its IPC handle).
bool is_device_memory(const void* p, size_t bytes);

// An entry of take_trace(): a text that lives forever, or a kernel.
void trace(const char* what, const void* kernel = nullptr);

// Reports `text` on stderr and makes `error` the answer of every further call on the device, as a fault
// of a kernel does. The first one stays.
void fault_device(int device, cudaError_t error, const std::string& text);

}  // namespace shoal::emulated
