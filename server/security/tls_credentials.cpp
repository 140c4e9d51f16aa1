#include "server/security/tls_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpcpp/security/server_credentials.h>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// gRPC's own FileWatcherCertificateProvider takes a new certificate before its new key is there and then
// refuses every connection until it comes; this asks TlsFiles, which only has pairs that fit.
class ReloadingCredentials final : public grpc::ServerCredentials {
 public:
  explicit ReloadingCredentials(std::shared_ptr<const TlsFiles> files) : files_(std::move(files)) {
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            files_->wants_client_certificates()
                ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            &fetch, this));
    SHOAL_CHECK(credentials_ != nullptr, "gRPC gives no TLS credentials");
  }
  ~ReloadingCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    SHOAL_CHECK(false, "keys are the guard's business");
  }

 private:
  // Called before every handshake, one at a time.
  static grpc_ssl_certificate_config_reload_status fetch(void* self,
                                                         grpc_ssl_server_certificate_config** out) {
    auto& me = *static_cast<ReloadingCredentials*>(self);
    const std::shared_ptr<const TlsMaterial> now = me.files_->current();
    if (now == me.given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair{now->private_key.c_str(), now->certificate_chain.c_str()};
    // Debian's gRPC aborts where there are no authorities, though none are asked when clients show no
    // certificate: then any will do.
    const std::string& roots = now->ca_certs.empty() ? now->certificate_chain : now->ca_certs;
    *out = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
    me.given_ = now;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  const std::shared_ptr<const TlsFiles> files_;
  std::shared_ptr<const TlsMaterial> given_;  // of fetch()
  grpc_server_credentials* credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> tls_credentials(std::shared_ptr<const TlsFiles> files) {
  return std::make_shared<ReloadingCredentials>(std::move(files));
}

}  // namespace shoal
