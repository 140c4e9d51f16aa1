// Who may call a real server: keys, certificates, and that nothing is open by mistake.
#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/generic/generic_stub.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <future>
#include <set>

#include "grpc/health/v1/health.grpc.pb.h"
#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "server/client_channel.h"
#include "server/rpc/reactors.h"
#include "tests/server/service_fixture.h"
#include "tests/server/test_certificates.h"
#include "tests/support/temp_dir.h"

namespace shoal {
namespace {

using Catch::Matchers::Contains;
using grpc::StatusCode;
using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckResponse;
using std::chrono::seconds;

void write(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new", std::ios::binary) << text;
  std::filesystem::rename(path + ".new", path);
}

std::string key_line(const std::string& name, const std::string& key, const std::string& more = "") {
  return "{\"name\": \"" + name + "\", \"sha256\": \"" + to_hex(sha256(bytes_of(key))) + "\"" + more +
         "}\n";
}

void set_key(grpc::ClientContext* context, const std::string& key) {
  context->set_deadline(std::chrono::system_clock::now() + seconds(20));
  if (!key.empty()) context->AddMetadata("authorization", "Bearer " + key);
}

// One message out, status back, whatever kind of method it is.
grpc::Status raw_call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::string& key) {
  grpc::ClientContext context;
  set_key(&context, key);
  const grpc::ByteBuffer request = [] {
    const grpc::Slice empty;
    return grpc::ByteBuffer(&empty, 1);
  }();
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  grpc::GenericStub stub(channel);
  stub.UnaryCall(&context, method, {}, &request, &response,
                 [&](grpc::Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

// Every method that reflection tells of.
template <typename Reflection, typename Request, typename Response>
std::vector<std::string> methods_told(const std::shared_ptr<grpc::Channel>& channel,
                                      const std::string& key) {
  const auto stub = Reflection::NewStub(channel);
  grpc::ClientContext context;
  set_key(&context, key);
  const auto stream = stub->ServerReflectionInfo(&context);
  Request request;
  Response response;
  request.set_list_services("*");
  REQUIRE(stream->Write(request));
  REQUIRE(stream->Read(&response));
  std::vector<std::string> methods;
  for (const auto& service : response.list_services_response().service()) {
    request.set_file_containing_symbol(service.name());
    Response file;
    REQUIRE(stream->Write(request));
    REQUIRE(stream->Read(&file));
    for (const std::string& bytes : file.file_descriptor_response().file_descriptor_proto()) {
      google::protobuf::FileDescriptorProto proto;
      REQUIRE(proto.ParseFromString(bytes));
      for (const auto& s : proto.service()) {
        if (proto.package() + "." + s.name() != service.name()) continue;
        for (const auto& m : s.method()) methods.push_back("/" + service.name() + "/" + m.name());
      }
    }
  }
  // What is not served is not told, though this program knows it.
  request.set_file_containing_symbol("shoal.engine.v1.Engine");
  REQUIRE(stream->Write(request));
  REQUIRE(stream->Read(&response));
  CHECK(response.error_response().error_code() == StatusCode::NOT_FOUND);
  stream->WritesDone();
  CHECK(stream->Finish().ok());
  return methods;
}

std::vector<std::string> methods_told(const std::shared_ptr<grpc::Channel>& channel,
                                      const std::string& key = "") {
  namespace v1 = grpc::reflection::v1;
  return methods_told<v1::ServerReflection, v1::ServerReflectionRequest, v1::ServerReflectionResponse>(
      channel, key);
}

// Somebody's service, who has never heard of keys.
class Forgetful final : public RpcService {
 public:
  std::string name() const override { return "test.Forgetful"; }
  std::map<std::string, RpcMethod> methods() override {
    return {{"Open", [this](grpc::GenericCallbackServerContext*, const CallContext&) {
               ++calls;
               return new RefusalReactor(grpc::Status::OK);
             }}};
  }
  std::atomic<int> calls{0};
};

TEST_CASE("every method of every service wants a key, also one that knows nothing of keys",
          "[security]") {
  const TempDir dir;
  GrpcServerOptions options;
  options.guard.api_key_file = dir.path() + "/keys";
  write(options.guard.api_key_file,
        key_line("a", "right") + key_line("old", "expired", R"(, "expires": "2001-01-01T00:00:00Z")"));
  FakeEngine engine;
  FrontEnd front_end(test_model(), test_tokenizer(), test_template(), engine, {});
  auto forgetful = std::make_unique<Forgetful>();
  Forgetful& open = *forgetful;
  std::vector<std::unique_ptr<RpcService>> more;
  more.push_back(std::move(forgetful));
  GrpcServer server(options, front_end, std::move(more));
  CHECK_FALSE(server.open());
  const auto channel = open_channel({.server = server.address()});

  std::vector<std::string> methods = methods_told(channel, "right");
  for (const char* expected :
       {"/shoal.v1.Inference/Chat", "/shoal.v1.Inference/GetStatus", "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}) {
    CHECK(std::ranges::count(methods, expected) == 1);
  }
  CHECK(methods.size() >= 10);
  methods.push_back("/test.Forgetful/Open");
  methods.push_back("/shoal.v1.Inference/NoSuchMethod");
  methods.push_back("/no.such.Service/Method");
  methods.push_back("/");
  for (const std::string& method : methods) {
    INFO(method);
    for (const char* key : {"", "wrong", "expired"}) {
      const grpc::Status status = raw_call(channel, method, key);
      CHECK(status.error_code() == StatusCode::UNAUTHENTICATED);
      CHECK_THAT(status.error_message(), Contains("API key"));
    }
  }
  CHECK(open.calls == 0);
  CHECK(raw_call(channel, "/test.Forgetful/Open", "right").error_code() != StatusCode::UNAUTHENTICATED);
  CHECK(open.calls == 1);
  CHECK(raw_call(channel, "/shoal.v1.Inference/GetStatus", "right").ok());
  for (const char* unknown : {"/shoal.v1.Inference/NoSuchMethod", "/no.such.Service/Method"}) {
    CHECK(raw_call(channel, unknown, "right").error_code() == StatusCode::UNIMPLEMENTED);
  }
  CHECK(engine.submitted().empty());
  // Refused calls of Chat and Complete are counted, and nothing else of theirs was done.
  CHECK(front_end.status().calls_rejected() == 6 + 0);
}

TEST_CASE("without keys all is open, and both versions of reflection tell the same", "[security]") {
  ServiceFixture fixture;
  CHECK(fixture.server.open());
  namespace alpha = grpc::reflection::v1alpha;
  const auto channel = fixture.channel();
  CHECK(methods_told<alpha::ServerReflection, alpha::ServerReflectionRequest,
                     alpha::ServerReflectionResponse>(channel, "") == methods_told(channel));
}

TEST_CASE("open health lets exactly health through", "[security]") {
  GrpcServerOptions options;
  options.guard = {.api_key = "right", .api_key_file = "", .open_health = true};
  ServiceFixture fixture(1024, options);
  const auto channel = fixture.channel();
  CHECK(raw_call(channel, "/grpc.health.v1.Health/Check", "").ok());
  for (const std::string& method : methods_told(channel, "right")) {
    if (method.starts_with("/grpc.health.v1.Health/")) continue;
    CHECK(raw_call(channel, method, "").error_code() == StatusCode::UNAUTHENTICATED);
  }
}

TEST_CASE("health tells who watches, and the end of the server ends them", "[security]") {
  ServiceFixture fixture;
  const auto stub = Health::NewStub(fixture.channel());
  const auto check = [&](const std::string& service, HealthCheckResponse* response) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    return stub->Check(&context, request, response);
  };
  HealthCheckResponse response;
  CHECK(check("nobody", &response).error_code() == StatusCode::NOT_FOUND);
  for (const char* service : {"", "shoal.v1.Inference"}) {
    REQUIRE(check(service, &response).ok());
    CHECK(response.status() == HealthCheckResponse::SERVING);
  }
  grpc::ClientContext watching, unknown, leaving;
  const auto watch = stub->Watch(&watching, {});
  grpc::health::v1::HealthCheckRequest nobody;
  nobody.set_service("nobody");
  const auto watch_unknown = stub->Watch(&unknown, nobody);
  auto watch_leaving = stub->Watch(&leaving, {});
  REQUIRE(watch->Read(&response));
  CHECK(response.status() == HealthCheckResponse::SERVING);
  REQUIRE(watch_unknown->Read(&response));
  CHECK(response.status() == HealthCheckResponse::SERVICE_UNKNOWN);
  REQUIRE(watch_leaving->Read(&response));
  leaving.TryCancel();
  CHECK(watch_leaving->Finish().error_code() == StatusCode::CANCELLED);
  fixture.server.set_serving(false);
  REQUIRE(watch->Read(&response));
  CHECK(response.status() == HealthCheckResponse::NOT_SERVING);
  const auto begin = std::chrono::steady_clock::now();
  fixture.server.shutdown(std::chrono::minutes(1));
  CHECK(std::chrono::steady_clock::now() - begin < seconds(30));
  CHECK_FALSE(watch->Read(&response));
  CHECK(watch->Finish().error_code() == StatusCode::UNAVAILABLE);
}

TEST_CASE("a call's client and salt come from its key, and from nothing in its message", "[security]") {
  const TempDir dir;
  GrpcServerOptions options;
  options.guard.api_key_file = dir.path() + "/keys";
  write(options.guard.api_key_file, key_line("a", "key-a") + key_line("b", "key-b"));
  ServiceFixture fixture(1024, options);
  fixture.answer_with("Hi");
  for (const char* key : {"key-a", "key-b", "key-a"}) {
    grpc::ClientContext context;
    set_key(&context, key);
    CHECK(fixture.chat(fixture.question("Hello"), &context).status.ok());
  }
  const std::vector<Request> requests = fixture.engine.submitted();
  REQUIRE(requests.size() == 3);
  CHECK(requests[0].tokens == requests[1].tokens);
  CHECK_FALSE(requests[0].cache_salt.empty());
  CHECK(requests[0].cache_salt != requests[1].cache_salt);
  CHECK(requests[0].cache_salt == requests[2].cache_salt);
  CHECK(requests[0].client != requests[1].client);
  for (const auto* message : {v1::ChatRequest::descriptor(), v1::CompleteRequest::descriptor()}) {
    for (int i = 0; i < message->field_count(); ++i) {
      CHECK_THAT(message->field(i)->name(), !Contains("salt") && !Contains("client"));
    }
  }
  // A key that is taken out is refused from the next call on; a stream that runs goes on.
  fixture.engine.pause(true);
  grpc::ClientContext running;
  set_key(&running, "key-b");
  const auto stream = fixture.stub->Chat(&running, fixture.question("Hello"));
  REQUIRE(eventually([&] { return fixture.engine.live() == 1; }));
  write(options.guard.api_key_file, key_line("c", "key-c"));
  fixture.server.reload_if_changed();
  CHECK(raw_call(fixture.channel(), "/shoal.v1.Inference/GetModel", "key-b").error_code() ==
        StatusCode::UNAUTHENTICATED);
  CHECK(raw_call(fixture.channel(), "/shoal.v1.Inference/GetModel", "key-c").ok());
  fixture.engine.pause(false);
  v1::ChatResponse response;
  while (stream->Read(&response)) {
  }
  CHECK(stream->Finish().ok());
}

// A server's certificate files, and clients of it.
struct TlsFixture {
  explicit TlsFixture(bool mutual) {
    options.tls = {dir.path() + "/cert", dir.path() + "/key", ""};
    if (mutual) {
      options.tls.ca_certs = dir.path() + "/ca";
      write(options.tls.ca_certs, clients.pem());
    }
    use(servers.sign("localhost"));
    fixture.emplace(1024, options);
    fixture->answer_with("Hi");
  }
  void use(const PemPair& pair) {
    write(options.tls.certfile, pair.certificate);
    write(options.tls.keyfile, pair.key);
  }
  ServerAddress address(const TestAuthority& trusted) {
    const std::string ca = dir.path() + "/trusted" + std::to_string(++files);
    write(ca, trusted.pem());
    return {.server = fixture->server.address(), .ca_certs = ca};
  }
  ServerAddress address(const TestAuthority& trusted, const PemPair& own) {
    ServerAddress a = address(trusted);
    a.certfile = a.ca_certs + ".cert";
    a.keyfile = a.ca_certs + ".key";
    write(a.certfile, own.certificate);
    write(a.keyfile, own.key);
    return a;
  }
  // Whether a call succeeds over a connection of its own.
  static bool calls(const ServerAddress& address) {
    const grpc::Status status =
        raw_call(open_channel(address), "/shoal.v1.Inference/GetModel", "");
    if (!status.ok()) CHECK(status.error_code() == StatusCode::UNAVAILABLE);
    return status.ok();
  }

  const TempDir dir;
  const TestAuthority servers{"servers"}, clients{"clients"};
  GrpcServerOptions options;
  std::optional<ServiceFixture> fixture;
  int files = 0;
};

TEST_CASE("TLS: only who trusts the certificate connects, and nobody in plain text", "[security]") {
  TlsFixture tls(false);
  CHECK(tls.calls(tls.address(tls.servers)));
  CHECK_FALSE(tls.calls(tls.address(tls.clients)));
  CHECK_FALSE(tls.calls({.server = tls.fixture->server.address()}));
  CHECK_FALSE(tls.calls({.server = tls.fixture->server.address(), .tls = true}));
  ServerAddress wrong_name = tls.address(tls.servers);
  wrong_name.tls_server_name = "elsewhere.example";
  CHECK_FALSE(tls.calls(wrong_name));
  ServerAddress half = tls.address(tls.servers);
  half.certfile = half.ca_certs;
  CHECK_THROWS_WITH(open_channel(half), Contains("go together"));
  ServerAddress missing = tls.address(tls.servers);
  missing.ca_certs += ".none";
  CHECK_THROWS_WITH(open_channel(missing), Contains("--ssl-ca-certs"));
}

TEST_CASE("mutual TLS: the certificate is wanted, checked, and names the client", "[security]") {
  TlsFixture tls(true);
  CHECK_FALSE(tls.fixture->server.open());
  CHECK_FALSE(tls.calls(tls.address(tls.servers)));  // none
  CHECK_FALSE(tls.calls(tls.address(tls.servers, tls.servers.sign("stranger"))));
  CHECK_FALSE(tls.calls(tls.address(tls.servers, tls.clients.sign("late", -60))));
  const ServerAddress right = tls.address(tls.servers, tls.clients.sign("alice.example"));
  CHECK(tls.calls(right));
  const auto stub = v1::Inference::NewStub(open_channel(right));
  grpc::ClientContext context;
  const auto reader = stub->Chat(&context, ServiceFixture::question("Hello"));
  v1::ChatResponse response;
  while (reader->Read(&response)) {
  }
  REQUIRE(reader->Finish().ok());
  CHECK_THAT(tls.fixture->engine.submitted().at(0).cache_salt, Contains("alice.example"));
}

TEST_CASE("certificates change under load: streams go on, new connections get the new one",
          "[security]") {
  TlsFixture tls(false);
  tls.fixture->engine.pause(true);
  const auto stub = v1::Inference::NewStub(open_channel(tls.address(tls.servers)));
  grpc::ClientContext context;
  const auto stream = stub->Chat(&context, ServiceFixture::question("Hello"));
  REQUIRE(eventually([&] { return tls.fixture->engine.live() == 1; }));
  const TestAuthority next("next");
  const PemPair pair = next.sign("localhost");
  // Half of the change: what was there stays.
  write(tls.options.tls.certfile, pair.certificate);
  tls.fixture->server.reload_if_changed();
  CHECK(tls.calls(tls.address(tls.servers)));
  write(tls.options.tls.keyfile, pair.key);
  tls.fixture->server.reload_if_changed();
  CHECK(tls.calls(tls.address(next)));
  CHECK_FALSE(tls.calls(tls.address(tls.servers)));
  tls.fixture->engine.pause(false);
  v1::ChatResponse response;
  while (stream->Read(&response)) {
  }
  CHECK(stream->Finish().ok());
}

}  // namespace
}  // namespace shoal
