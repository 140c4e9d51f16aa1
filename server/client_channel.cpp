#include "server/client_channel.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <iterator>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Certificates and keys: what is larger is some other file.
constexpr size_t kMaxPemBytes = size_t{4} << 20;

bool is_loopback(const std::string& server) {
  return server.starts_with("127.") || server.starts_with("localhost:") ||
         server.starts_with("[::1]:") || server.starts_with("unix:");
}

std::string read_pem(const char* flag, const std::string& path) {
  if (path.empty()) return {};
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxPemBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.empty() || text.size() == kMaxPemBytes) {
    throw_invalid("{} {}: not a readable PEM file", flag, path);
  }
  return text;
}

}  // namespace

void add_server_flags(CLI::App& app, ServerAddress& a) {
  const std::string group = "Server";
  app.add_option("--server", a.server, "host:port of the server")
      ->group(group)
      ->capture_default_str();
  app.add_option("--api-key", a.api_key,
                 "Key of the server; better in SHOAL_API_KEY, where other users do not see it")
      ->group(group);
  app.add_flag("--tls", a.tls, "Talk TLS; the files below mean it too")->group(group);
  app.add_option("--ssl-ca-certs", a.ca_certs,
                 "PEM file of who signs the server; default: the system's authorities")
      ->group(group);
  app.add_option("--ssl-certfile", a.certfile, "PEM file of this client's certificate (mutual TLS)")
      ->group(group);
  app.add_option("--ssl-keyfile", a.keyfile, "PEM file of its private key")->group(group);
  app.add_option("--tls-server-name", a.tls_server_name,
                 "Name in the server's certificate, when it is not the host of --server")
      ->group(group);
}

std::shared_ptr<grpc::Channel> open_channel(const ServerAddress& a) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(-1);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // gRPC asks $http_proxy for every address; no proxy reaches a server of this machine.
  if (is_loopback(a.server)) args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const bool tls = a.tls || !a.ca_certs.empty() || !a.certfile.empty() || !a.keyfile.empty() ||
                   !a.tls_server_name.empty();
  if (!tls) {
    if (!a.api_key.empty() && !is_loopback(a.server)) {
      spdlog::warn("the key goes to {} in clear text: use --tls", a.server);
    }
    return grpc::CreateCustomChannel(a.server, grpc::InsecureChannelCredentials(), args);
  }
  if (a.certfile.empty() != a.keyfile.empty()) {
    throw_invalid("--ssl-certfile and --ssl-keyfile go together; only one is given");
  }
  if (!a.tls_server_name.empty()) args.SetSslTargetNameOverride(a.tls_server_name);
  grpc::SslCredentialsOptions pem;
  pem.pem_root_certs = read_pem("--ssl-ca-certs", a.ca_certs);
  pem.pem_cert_chain = read_pem("--ssl-certfile", a.certfile);
  pem.pem_private_key = read_pem("--ssl-keyfile", a.keyfile);
  return grpc::CreateCustomChannel(a.server, grpc::SslCredentials(pem), args);
}

void authorize(const ServerAddress& address, grpc::ClientContext* context) {
  if (!address.api_key.empty()) context->AddMetadata("authorization", "Bearer " + address.api_key);
}

}  // namespace shoal
