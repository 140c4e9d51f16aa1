// How the clients of this program (`shoal chat`, `shoal top`, `shoal bench serve`) reach a server: address,
// key and TLS, as flags of theirs and as a gRPC channel.
#pragma once

#include <memory>
#include <string>

namespace CLI {
class App;
}
namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace shoal {

struct ServerAddress {
  std::string server = "127.0.0.1:8000";  // --server host:port
  std::string api_key;                    // --api-key; empty: none is sent
  bool tls = false;                       // --tls; any file below means it too
  std::string ca_certs;                   // --ssl-ca-certs: who signs servers; empty: the system's
  std::string certfile, keyfile;          // --ssl-certfile, --ssl-keyfile: this client, for mutual TLS
  std::string tls_server_name;            // --tls-server-name: in the certificate, when not the host's
};

// --server, --api-key, --tls, --ssl-ca-certs, --ssl-certfile, --ssl-keyfile, --tls-server-name.
void add_server_flags(CLI::App& app, ServerAddress& address);

// Messages of any size; no proxy for addresses of this machine. A channel connects when it is first used.
// Every channel has a connection of its own. Throws InvalidInput for files that cannot be read.
// Warns when a key would go to another machine in clear text.
std::shared_ptr<grpc::Channel> open_channel(const ServerAddress& address);

// Sends the key with a call.
void authorize(const ServerAddress& address, grpc::ClientContext* context);

}  // namespace shoal
