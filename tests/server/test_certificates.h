// Certificates for tests, made on the spot: an authority, and what it signs.
#pragma once

#include <memory>
#include <string>

typedef struct x509_st X509;
typedef struct evp_pkey_st EVP_PKEY;

namespace shoal {

struct PemPair {
  std::string certificate, key;
};

class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name);
  std::string pem() const;
  // A certificate for the DNS name `name` (and 127.0.0.1), valid from an hour ago for `seconds`, which may be
  // negative: expired.
  PemPair sign(const std::string& name, long seconds = 3600) const;

 private:
  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> certificate_;
};

}  // namespace shoal
