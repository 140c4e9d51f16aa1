#include "server/security/tls_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <spdlog/spdlog.h>

#include <ctime>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr size_t kMaxPemBytes = size_t{4} << 20;  // a bundle of all public authorities is 250 KB
constexpr std::time_t kWarnBefore = 7 * 24 * 3600;

using Bio = std::unique_ptr<BIO, int (*)(BIO*)>;
using Certificate = std::unique_ptr<X509, void (*)(X509*)>;
using PrivateKey = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;

Bio reader(const std::string& text) {
  return {BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free};
}

// OpenSSL would ask the terminal for it.
int no_password(char*, int, int, void*) { return 0; }

std::vector<Certificate> certificates(const char* flag, const std::string& path,
                                      const std::string& text) {
  const Bio bio = reader(text);
  std::vector<Certificate> list;
  for (;;) {
    Certificate next(PEM_read_bio_X509(bio.get(), nullptr, no_password, nullptr), X509_free);
    if (!next) break;
    list.push_back(std::move(next));
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (list.empty() || !at_end) {
    throw_invalid("{} {}: not a PEM file of certificates (certificate {} cannot be read)", flag, path,
                  list.size() + 1);
  }
  return list;
}

std::string date(const ASN1_TIME* time) {
  const Bio bio(BIO_new(BIO_s_mem()), BIO_free);
  ASN1_TIME_print(bio.get(), time);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

// A wrong clock is as likely as a wrong certificate, so these are no errors; clients decide.
void warn_of_dates(const char* flag, const std::string& path, const X509* certificate) {
  std::time_t now = std::time(nullptr), soon = now + kWarnBefore;
  const ASN1_TIME* begin = X509_get0_notBefore(certificate);
  const ASN1_TIME* end = X509_get0_notAfter(certificate);
  if (X509_cmp_time(begin, &now) > 0) {
    spdlog::warn("{} {}: the certificate is valid from {} on", flag, path, date(begin));
  } else if (X509_cmp_time(end, &now) < 0) {
    spdlog::warn("{} {}: the certificate has expired on {}; clients will refuse it", flag, path,
                 date(end));
  } else if (X509_cmp_time(end, &soon) < 0) {
    spdlog::warn("{} {}: the certificate expires on {}", flag, path, date(end));
  }
}

PrivateKey private_key(const std::string& path, const std::string& text) {
  PrivateKey key(PEM_read_bio_PrivateKey(reader(text).get(), nullptr, no_password, nullptr),
                 EVP_PKEY_free);
  ERR_clear_error();
  if (!key) {
    throw_invalid("--ssl-keyfile {}: not a PEM file of a private key without a password", path);
  }
  return key;
}

}  // namespace

TlsMaterial load_tls(const TlsPaths& paths) {
  if (paths.certfile.empty() || paths.keyfile.empty()) {
    throw_invalid("TLS needs --ssl-certfile and --ssl-keyfile; {} is missing",
                  paths.certfile.empty() ? "--ssl-certfile" : "--ssl-keyfile");
  }
  TlsMaterial material;
  material.certificate_chain = read_small_file("--ssl-certfile", paths.certfile, kMaxPemBytes);
  material.private_key = read_small_file("--ssl-keyfile", paths.keyfile, kMaxPemBytes);
  const std::vector<Certificate> chain =
      certificates("--ssl-certfile", paths.certfile, material.certificate_chain);
  const PrivateKey key = private_key(paths.keyfile, material.private_key);
  const bool fits = X509_check_private_key(chain.front().get(), key.get()) == 1;
  ERR_clear_error();
  if (!fits) {
    throw_invalid("--ssl-keyfile {}: not the key of the certificate in {}", paths.keyfile,
                  paths.certfile);
  }
  warn_of_dates("--ssl-certfile", paths.certfile, chain.front().get());
  if (!paths.ca_certs.empty()) {
    material.ca_certs = read_small_file("--ssl-ca-certs", paths.ca_certs, kMaxPemBytes);
    for (const Certificate& ca : certificates("--ssl-ca-certs", paths.ca_certs, material.ca_certs)) {
      warn_of_dates("--ssl-ca-certs", paths.ca_certs, ca.get());
    }
  }
  return material;
}

TlsFiles::TlsFiles(TlsPaths paths) : paths_(std::move(paths)), stamps_(stamps()) {
  material_ = std::make_shared<const TlsMaterial>(load_tls(paths_));
}

TlsFiles::Stamps TlsFiles::stamps() const {
  return {stamp_of(paths_.certfile), stamp_of(paths_.keyfile), stamp_of(paths_.ca_certs)};
}

std::shared_ptr<const TlsMaterial> TlsFiles::current() const {
  const std::lock_guard lock(mutex_);
  return material_;
}

void TlsFiles::reload_if_changed() {
  const Stamps now = stamps();
  {
    const std::lock_guard lock(mutex_);
    if (now == stamps_) return;
  }
  reload();
}

void TlsFiles::reload() {
  const Stamps before = stamps();
  std::shared_ptr<const TlsMaterial> material;
  try {
    material = std::make_shared<const TlsMaterial>(load_tls(paths_));
    spdlog::info("--ssl-certfile {}: read again; new connections get it", paths_.certfile);
  } catch (const InvalidInput& error) {
    spdlog::error("{}; the certificates stay as they were", error.what());
  }
  const std::lock_guard lock(mutex_);
  stamps_ = before;
  if (material) material_ = std::move(material);
}

}  // namespace shoal
