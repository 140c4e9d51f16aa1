// Reactors that services are made of. Includes gRPC's headers: for .cpp files of services only.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "server/rpc/rpc_service.h"

namespace shoal {

// Ends a call with a status at once.
class RefusalReactor final : public RpcReactor {
 public:
  explicit RefusalReactor(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// Reads the one request of a call. A call that never sends it is ended by its deadline or its connection.
class OneRequestReactor : public RpcReactor {
 public:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "the call has no request message"});
    on_request(request_);
  }

 protected:
  void read_request() { StartRead(&request_); }
  virtual void on_request(grpc::ByteBuffer& request) = 0;  // once

 private:
  grpc::ByteBuffer request_;
};

// One request, one answer.
class UnaryReactor final : public OneRequestReactor {
 public:
  using Work = std::function<grpc::Status(const grpc::ByteBuffer& request, grpc::ByteBuffer* reply)>;
  explicit UnaryReactor(Work work) : work_(std::move(work)) { read_request(); }
  void OnDone() override { delete this; }

 private:
  void on_request(grpc::ByteBuffer& request) override {
    const grpc::Status status = work_(request, &reply_);
    if (!status.ok()) return Finish(status);
    StartWriteAndFinish(&reply_, grpc::WriteOptions(), status);
  }

  const Work work_;
  grpc::ByteBuffer reply_;
};

inline std::string flatten(const grpc::ByteBuffer& bytes) {
  std::string flat;
  std::vector<grpc::Slice> slices;
  if (!bytes.Dump(&slices).ok()) return flat;
  flat.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) {
    flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return flat;
}

inline grpc::ByteBuffer to_bytes(const google::protobuf::Message& message) {
  const std::string flat = message.SerializeAsString();
  const grpc::Slice slice(flat);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace shoal
