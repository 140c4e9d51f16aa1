#include "server/security/security_flags.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <fstream>

namespace shoal {
namespace {

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.starts_with("127.");
}

// What everybody on this machine can read.
bool key_on_command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  for (std::string word; std::getline(file, word, '\0');) {
    if (word == "--api-key" || word == "--api_key" || word.starts_with("--api-key=") ||
        word.starts_with("--api_key=")) {
      return true;
    }
  }
  return false;
}

}  // namespace

void add_security_flags(CLI::App& app, SecurityOptions& o) {
  const std::string group = "Security";
  app.add_option("--api-key", o.guard.api_key,
                 "Calls must carry `authorization: Bearer KEY`; better in SHOAL_API_KEY, which ps does not show")
      ->group(group);
  app.add_option("--api-key-file", o.guard.api_key_file,
                 "File of keys, each with its own limits (shoal key new makes a line); read again when it changes")
      ->group(group);
  app.add_flag("--open-health", o.guard.open_health,
               "Answer grpc.health.v1 without a key, for probes that have none")
      ->group(group);
  app.add_option("--ssl-certfile", o.tls.certfile, "PEM file of the server's certificate chain: talk TLS")
      ->group(group);
  app.add_option("--ssl-keyfile", o.tls.keyfile, "PEM file of its private key")->group(group);
  app.add_option("--ssl-ca-certs", o.tls.ca_certs,
                 "PEM file of authorities: clients must have a certificate that one of them signed")
      ->group(group);
  app.add_option("--max-connection-age", o.max_connection_age,
                 "Seconds after which a client is asked to connect anew, its running calls left alone; 0: never")
      ->check(CLI::Range(0, 1 << 20))
      ->group(group)
      ->capture_default_str();
}

void warn_of_weak_spots(const std::string& host, const SecurityOptions& o) {
  const bool keys = !o.guard.api_key.empty() || !o.guard.api_key_file.empty();
  if (!is_loopback(host)) {
    if (!keys && o.tls.ca_certs.empty()) {
      spdlog::warn("Everybody who reaches {} may call: set --api-key-file, or --ssl-ca-certs for mutual TLS",
                   host);
    } else if (!o.tls.enabled()) {
      spdlog::warn("Keys and prompts travel in clear text to {}: set --ssl-certfile and --ssl-keyfile, or let "
                   "a proxy on this machine do it",
                   host);
    }
  }
  if (key_on_command_line()) {
    spdlog::warn("--api-key on the command line is seen by everybody on this machine (ps): use SHOAL_API_KEY "
                 "or --api-key-file");
  }
}

}  // namespace shoal
