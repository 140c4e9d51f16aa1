#include "server/rpc/reflection_service.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <set>

#include "grpc/reflection/v1/reflection.pb.h"
#include "grpc/reflection/v1alpha/reflection.pb.h"
#include "server/rpc/reactors.h"

namespace shoal {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;

// A file and what it imports, each once.
void collect(const FileDescriptor* file, std::set<const FileDescriptor*>* seen,
             std::vector<const FileDescriptor*>* files) {
  if (!seen->insert(file).second) return;
  files->push_back(file);
  for (int i = 0; i < file->dependency_count(); ++i) collect(file->dependency(i), seen, files);
}

}  // namespace

class ReflectionService::Files {
 public:
  explicit Files(std::vector<std::string> services) : services_(std::move(services)) {
    // A program that never names a message of theirs might leave these descriptors out.
    grpc::reflection::v1alpha::ServerReflectionRequest::descriptor();
    ServerReflectionRequest::descriptor();
    std::vector<const FileDescriptor*> files;
    for (const std::string& service : services_) {
      const FileDescriptor* file = pool_.FindFileContainingSymbol(service);
      if (file != nullptr) collect(file, &known_, &files);
    }
  }

  void answer(const ServerReflectionRequest& request, ServerReflectionResponse* response) const {
    response->set_valid_host(request.host());
    *response->mutable_original_request() = request;
    switch (request.message_request_case()) {
      case ServerReflectionRequest::kListServices:
        for (const std::string& name : services_) {
          response->mutable_list_services_response()->add_service()->set_name(name);
        }
        return;
      case ServerReflectionRequest::kFileByFilename:
        return give(pool_.FindFileByName(request.file_by_filename()), response);
      case ServerReflectionRequest::kFileContainingSymbol:
        return give(pool_.FindFileContainingSymbol(request.file_containing_symbol()), response);
      case ServerReflectionRequest::kFileContainingExtension: {
        const auto& wanted = request.file_containing_extension();
        const Descriptor* type = pool_.FindMessageTypeByName(wanted.containing_type());
        const FieldDescriptor* field =
            type == nullptr ? nullptr : pool_.FindExtensionByNumber(type, wanted.extension_number());
        return give(field == nullptr ? nullptr : field->file(), response);
      }
      case ServerReflectionRequest::kAllExtensionNumbersOfType: {
        const Descriptor* type = pool_.FindMessageTypeByName(request.all_extension_numbers_of_type());
        if (type == nullptr || !known_.contains(type->file())) return give(nullptr, response);
        std::vector<const FieldDescriptor*> fields;
        pool_.FindAllExtensions(type, &fields);
        auto* numbers = response->mutable_all_extension_numbers_response();
        numbers->set_base_type_name(type->full_name());
        for (const FieldDescriptor* field : fields) numbers->add_extension_number(field->number());
        return;
      }
      case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
        break;
    }
    fail(grpc::StatusCode::INVALID_ARGUMENT, "the request asks for nothing", response);
  }

 private:
  static void fail(grpc::StatusCode code, const char* message, ServerReflectionResponse* response) {
    response->mutable_error_response()->set_error_code(code);
    response->mutable_error_response()->set_error_message(message);
  }

  void give(const FileDescriptor* file, ServerReflectionResponse* response) const {
    if (file == nullptr || !known_.contains(file)) {
      return fail(grpc::StatusCode::NOT_FOUND, "nothing of that name here", response);
    }
    std::set<const FileDescriptor*> seen;
    std::vector<const FileDescriptor*> files;
    collect(file, &seen, &files);
    for (const FileDescriptor* f : files) {
      google::protobuf::FileDescriptorProto proto;
      f->CopyTo(&proto);
      proto.SerializeToString(
          response->mutable_file_descriptor_response()->add_file_descriptor_proto());
    }
  }

  const std::vector<std::string> services_;
  const DescriptorPool& pool_ = *DescriptorPool::generated_pool();
  std::set<const FileDescriptor*> known_;
};

// Answers one request after the other, and reads the next when the answer is written.
class ReflectionService::Stream final : public RpcReactor {
 public:
  explicit Stream(std::shared_ptr<const Files> files) : files_(std::move(files)) { StartRead(&in_); }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    ServerReflectionRequest request;
    if (!request.ParseFromString(flatten(in_))) {
      return Finish({grpc::StatusCode::INVALID_ARGUMENT, "not a ServerReflectionRequest"});
    }
    ServerReflectionResponse response;
    files_->answer(request, &response);
    out_ = to_bytes(response);
    StartWrite(&out_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    StartRead(&in_);
  }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<const Files> files_;
  grpc::ByteBuffer in_, out_;
};

ReflectionService::ReflectionService(const std::string& version, std::vector<std::string> services)
    : name_("grpc.reflection." + version + ".ServerReflection"),
      files_(std::make_shared<const Files>(std::move(services))) {}
ReflectionService::~ReflectionService() = default;

std::map<std::string, RpcMethod> ReflectionService::methods() {
  return {{"ServerReflectionInfo",
           [files = files_](grpc::GenericCallbackServerContext*, const CallContext&) {
             return new Stream(files);
           }}};
}

}  // namespace shoal
