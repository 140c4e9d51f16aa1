// TlsFiles: certificate, key and authorities of a server, checked before gRPC sees them, because gRPC says
// nothing useful of a file that is wrong. Thread-safe.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>

#include "server/security/small_file.h"

namespace shoal {

struct TlsPaths {
  std::string certfile, keyfile;  // --ssl-certfile, --ssl-keyfile: both, or none for plain text
  std::string ca_certs;           // --ssl-ca-certs: clients must have a certificate that these sign
  bool enabled() const { return !certfile.empty() || !keyfile.empty() || !ca_certs.empty(); }
};

// PEM.
struct TlsMaterial {
  std::string certificate_chain, private_key, ca_certs;
};

// Throws InvalidInput: a file that is missing, unreadable or not PEM, a key that is not the certificate's.
// Warns of certificates that have expired, will within a week, or are not valid yet.
TlsMaterial load_tls(const TlsPaths& paths);

class TlsFiles {
 public:
  explicit TlsFiles(TlsPaths paths);  // throws as load_tls

  bool wants_client_certificates() const { return !paths_.ca_certs.empty(); }
  std::shared_ptr<const TlsMaterial> current() const;
  // Reads the files again: when one has changed, or anyway. Files that are wrong, as between the writing of
  // one and of the other, are logged and tried again; what was there stays.
  void reload_if_changed();
  void reload();

 private:
  using Stamps = std::array<FileStamp, 3>;
  Stamps stamps() const;

  const TlsPaths paths_;
  mutable std::mutex mutex_;
  std::shared_ptr<const TlsMaterial> material_;  // guarded by mutex_, as the next
  Stamps stamps_{};
};

}  // namespace shoal
