// A gRPC client for tests of faults, without gRPC's headers: one call at a time, a call that is read by hand,
// and many calls at once on one thread, each with its own way of ending.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shoal/v1/inference.pb.h"

namespace shoal {

// The values of gRPC's status codes.
enum class Code {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kUnauthenticated = 16,
};

struct CallResult {
  Code code = Code::kUnknown;
  std::string message;
  std::string text;                // of sample 0
  std::vector<int32_t> token_ids;  // of sample 0
  std::vector<v1::FinishReason> finish_reasons;
  v1::Usage usage;
  bool has_usage = false;
  int messages = 0;
  std::multimap<std::string, std::string> trailers;
  double seconds = 0;              // from the start to the status
};

struct CallOptions {
  double deadline_seconds = 120;  // 0: it is over already
  std::multimap<std::string, std::string> metadata;
  bool compress = false;  // the request, with gzip
};

// Certificates as PEM text. Empty ca: no TLS.
struct ClientTls {
  std::string ca, certificate, key;
  std::string server_name;  // checked instead of the address
};

struct ClientOptions {
  ClientTls tls;
  std::string token;       // sent as `authorization: Bearer TOKEN`
  int window_bytes = 0;    // HTTP/2 flow control of a stream; 0: gRPC's default
};

// One connection of its own. Thread-safe.
class FaultClient {
 public:
  explicit FaultClient(const std::string& address, ClientOptions options = {});
  ~FaultClient();

  CallResult chat(const v1::ChatRequest& request, const CallOptions& options = {});
  CallResult complete(const v1::CompleteRequest& request, const CallOptions& options = {});
  CallResult detokenize(const v1::DetokenizeRequest& request, std::string* text = nullptr);
  CallResult tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response);
  // Throws std::runtime_error when there is no answer.
  v1::GetStatusResponse status();
  // Of grpc.health.v1: 0 no answer, 1 SERVING, 2 NOT_SERVING.
  int health(const std::string& service = "");
  // Any method, bytes in and out; the first message of a stream.
  CallResult raw(const std::string& method, const std::string& request, std::string* reply = nullptr,
                 const CallOptions& options = {});

  // A call of Complete whose messages are read when the test asks for them.
  class Stream {
   public:
    Stream();
    ~Stream();  // cancelled, unless finished
    bool read(v1::CompleteResponse* response);
    void cancel();
    CallResult finish();  // reads what is left

   private:
    friend class FaultClient;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };
  std::unique_ptr<Stream> open(const v1::CompleteRequest& request, const CallOptions& options = {});

  // One of many calls.
  struct LoadCall {
    v1::CompleteRequest request;
    double deadline_seconds = 300;
    int cancel_after_messages = -1;  // 0: as soon as the call is started
    double cancel_after_seconds = -1;
    int read_pause_ms = 0;           // before each message
  };
  // Runs `total` calls, `concurrent` at a time. `make` gives the i-th call, `done` takes its result; both
  // on the calling thread.
  void load(int total, int concurrent, const std::function<LoadCall(int)>& make,
            const std::function<void(int, const LoadCall&, const CallResult&)>& done);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A prompt of token ids, one answer of so many tokens that are the most likely ones.
v1::CompleteRequest greedy(const std::vector<int32_t>& prompt, int max_tokens);
// `length` ids of the demo model that depend on `seed`.
std::vector<int32_t> some_ids(int seed, int length);

}  // namespace shoal
