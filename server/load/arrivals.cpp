#include "server/load/arrivals.h"

#include <cmath>

#include "kernels/base/error.h"

namespace shoal {

Arrivals::Arrivals(const BenchServeOptions& o)
    : rate_(o.request_rate), burst_size_(o.burst_size), random_(o.seed) {
  if (!(rate_ > 0))
    throw_invalid("--request-rate {}: requests per second, more than 0, or inf", rate_);
  if (!(o.burstiness > 0))
    throw_invalid("--burstiness {}: more than 0; 1 is a Poisson process", o.burstiness);
  if (burst_size_ < 1) throw_invalid("--burst-size {}: at least 1", burst_size_);
  if (std::isinf(rate_)) {
    kind_ = Kind::kAtOnce;
  } else if (o.arrival == "poisson") {
    // Gaps of mean 1 / rate; a shape of 1 is the exponential distribution, a smaller one comes in
    // bursts.
    kind_ = Kind::kGamma;
    gap_ = std::gamma_distribution<double>(o.burstiness, 1 / (rate_ * o.burstiness));
  } else if (o.arrival == "constant") {
    kind_ = Kind::kConstant;
  } else if (o.arrival == "burst") {
    kind_ = Kind::kBurst;
  } else {
    throw_invalid("--arrival {}: use poisson, constant or burst", o.arrival);
  }
}

double Arrivals::next() {
  const int64_t index = count_++;
  switch (kind_) {
    case Kind::kAtOnce: return 0;
    case Kind::kConstant: return static_cast<double>(index) / rate_;
    case Kind::kBurst: return static_cast<double>(index / burst_size_ * burst_size_) / rate_;
    case Kind::kGamma:
      if (index > 0) now_ += gap_(random_);
      return now_;
  }
  return now_;
}

}  // namespace shoal
