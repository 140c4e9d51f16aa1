// What a gRPC server listens with when it talks TLS: 1.2 or 1.3, with the certificates of TlsFiles at the
// time of each handshake, so that connections that are open live on when certificates change.
#pragma once

#include <memory>

#include "server/security/tls_files.h"

namespace grpc {
class ServerCredentials;
}

namespace shoal {

// For one listening port. Clients must show a certificate where TlsFiles wants it.
std::shared_ptr<grpc::ServerCredentials> tls_credentials(std::shared_ptr<const TlsFiles> files);

}  // namespace shoal
