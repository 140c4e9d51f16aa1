// EngineService: rank 0's end of engine.proto: a gRPC server on a unix socket with one conversation.
// Between the front end and the Engine: submissions go in, events come out, one message for a step.
//
// Thread-safe. Nothing here waits for the front end except failed() and the destructor, a second at
// most each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"

namespace shoal {

// What rank 0 tells the front end when all ranks are loaded.
struct EngineReady {
  int32_t world_size = 1;
  int32_t max_model_len = 0;
  int64_t kv_tokens = 0;
  uint64_t weight_bytes = 0, kv_cache_bytes = 0;  // of all ranks
  double load_seconds = 0;
  std::vector<std::string> ranks;
  struct Memory {
    std::string use;
    uint64_t planned = 0, taken = 0;  // bytes
  };
  std::vector<std::vector<Memory>> memory;  // of each rank
};

class EngineService {
 public:
  // Listens at once, so that the front end sees the loading. Throws DeviceFault when it cannot.
  // The folder of the socket must be open to this user only.
  explicit EngineService(const std::string& socket_path);
  // Ends the conversation, after what has been said has been sent.
  ~EngineService();

  void loading(uint64_t bytes_read, uint64_t bytes_total);
  // Hands over what the step gave, and once a second statistics; for Engine's sink.
  void emit(std::vector<TokenEvent> events, const EngineStats& stats);
  // Takes submissions from now on. Stops the engine when the front end asks for it or is gone; the
  // engine must outlive this object or a call of release().
  void serve(Engine& engine, const EngineReady& ready);
  void release();  // knows the engine no more
  // The last word. `invalid_input`: starting again would not help.
  void failed(const std::string& reason, bool invalid_input);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
