// What `shoal serve` is told about who may call it, and how.
#pragma once

#include <string>

#include "server/security/guard.h"
#include "server/security/tls_files.h"

namespace CLI {
class App;
}

namespace shoal {

struct SecurityOptions {
  GuardOptions guard;          // --api-key, --api-key-file, --open-health
  TlsPaths tls;                // --ssl-certfile, --ssl-keyfile, --ssl-ca-certs
  int max_connection_age = 0;  // --max-connection-age: seconds; 0: no limit
  bool has_files() const { return !guard.api_key_file.empty() || tls.enabled(); }
};

void add_security_flags(CLI::App& app, SecurityOptions& options);

// Warns of what an operator may not have meant: everybody may call from elsewhere, keys in clear text, a key
// that `ps` shows.
void warn_of_weak_spots(const std::string& host, const SecurityOptions& options);

}  // namespace shoal
