#include "tests/kernels/support/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/targets.h"

namespace shoal::test {

// Not for inner loops: asking for the targets asks the processor, which a virtual machine traps.
double chain(int64_t n) {
  const bool simd = (hwy::SupportedTargets() & (HWY_AVX3 | HWY_AVX2 | HWY_NEON)) != 0;
  return (simd ? 0.25 : 2.0) * static_cast<double>(n) + 8;
}

void for_each_index(const Tensor& tensor, const std::function<void(int64_t offset)>& body) {
  const int64_t n = tensor.num_elements();
  for (int64_t i = 0; i < n; ++i) {
    int64_t rest = i, offset = 0;
    for (int d = tensor.rank - 1; d >= 0; --d) {
      offset += rest % tensor.shape[d] * tensor.stride[d];
      rest /= tensor.shape[d];
    }
    body(offset);
  }
}

double value_at(const Tensor& tensor, int64_t offset) {
  switch (tensor.dtype) {
    case DType::kF32: return tensor.as<float>()[offset];
    case DType::kF16: return to_float(tensor.as<F16>()[offset]);
    case DType::kBF16: return to_float(tensor.as<BF16>()[offset]);
    case DType::kF8E4M3: return to_float(tensor.as<F8E4M3>()[offset]);
    case DType::kI32: return tensor.as<int32_t>()[offset];
    case DType::kI8: return tensor.as<int8_t>()[offset];
    default: SHOAL_CHECK(false, "{}", dtype_name(tensor.dtype));
  }
}

std::vector<double> values(const Tensor& tensor) {
  std::vector<double> result;
  for_each_index(tensor, [&](int64_t at) { result.push_back(value_at(tensor, at)); });
  return result;
}

std::string first_violation(const Tensor& actual, const Expected& expected) {
  const std::vector<double> got = values(actual);
  if (got.size() != expected.value.size()) {
    return fmt::format("{} elements, expected {}", got.size(), expected.value.size());
  }
  for (size_t i = 0; i < got.size(); ++i) {
    // Written so that a NaN is a violation.
    if (!(std::fabs(got[i] - expected.value[i]) <= expected.bound[i])) {
      return fmt::format("element {} of {}: {} but expected {} +- {}", i, actual.shape_string(),
                         got[i], expected.value[i], expected.bound[i]);
    }
  }
  return "";
}

namespace {

// Of the scale and the min of an element, in elements.
int64_t block_at(const Weight& w, int64_t row, int64_t col) {
  return (row + w.row_offset) / w.block_rows * w.scale.stride[0] +
         (col + w.col_offset) / w.block_cols;
}

}  // namespace

double weight_at(const Weight& w, int64_t row, int64_t col) {
  double value = 0;
  if (w.data.dtype == DType::kI4x2) {
    const uint8_t byte = w.data.row<const uint8_t>(row)[col / 2];
    const int nibble = col % 2 == 0 ? byte & 15 : byte >> 4;
    value = nibble < 8 ? nibble : nibble - 16;
  } else {
    value = value_at(w.data, row * w.data.stride[0] + col);
  }
  if (!has_scales(w.data.dtype)) return value;
  const int64_t block = block_at(w, row, col);
  const auto product = static_cast<float>(value * value_at(w.scale, block));
  return w.min.defined() ? product + w.min.as<float>()[block] : product;
}

Expected linear(const Tensor& x, const Weight& w, const Tensor& bias) {
  Expected expected;
  const double roundings = chain(w.k());
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t n = 0; n < w.n(); ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < w.k(); ++k) {
        const double xv = value_at(x, t * x.stride[0] + k), wv = weight_at(w, n, k);
        sum += xv * wv;
        magnitude += std::fabs(xv * wv);
        if (w.min.defined()) {
          // number * scale and min may cancel: a kernel rounds both, or sums them apart.
          const double min = value_at(w.min, block_at(w, n, k));
          magnitude += std::fabs(xv) * (std::fabs(wv - min) + std::fabs(min) - std::fabs(wv));
        }
      }
      if (bias.defined()) {
        sum += value_at(bias, n);
        magnitude += std::fabs(value_at(bias, n));
      }
      expected.push(sum, magnitude * kEps * roundings);
    }
  }
  return expected;
}

Expected rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  Expected expected;
  const int64_t dim = x.dim(1);
  const double roundings = chain(dim);
  for (int64_t t = 0; t < x.dim(0); ++t) {
    double squares = 0;
    for (int64_t i = 0; i < dim; ++i) squares += std::pow(value_at(x, t * x.stride[0] + i), 2);
    const double factor = 1 / std::sqrt(squares / dim + eps);
    for (int64_t i = 0; i < dim; ++i) {
      const double value = value_at(x, t * x.stride[0] + i) * factor * value_at(weight, i);
      // All terms of the sum are positive, and the root halves its relative error.
      expected.push(value, std::fabs(value) * kEps * roundings);
    }
  }
  return expected;
}

Expected silu_mul(const Tensor& gate, const Tensor& up) {
  Expected expected;
  for (int64_t t = 0; t < gate.dim(0); ++t) {
    for (int64_t i = 0; i < gate.dim(1); ++i) {
      const double g = value_at(gate, t * gate.stride[0] + i);
      const double value = g / (1 + std::exp(-g)) * value_at(up, t * up.stride[0] + i);
      // exp is within 4 roundings; below -87 the kernel's sigmoid is a denormal or zero.
      expected.push(value, std::fabs(value) * kEps * 12 + 1e-35);
    }
  }
  return expected;
}

Expected rope(const Tensor& x, const Tensor& positions, const Tensor& table, bool interleaved) {
  Expected expected;
  const int64_t d = x.dim(2), half = d / 2;
  for (int64_t t = 0; t < x.dim(0); ++t) {
    const auto position = static_cast<int64_t>(value_at(positions, t));
    for (int64_t h = 0; h < x.dim(1); ++h) {
      for (int64_t i = 0; i < d; ++i) {
        const int64_t pair = interleaved ? i / 2 : i % half;
        const bool first = interleaved ? i % 2 == 0 : i < half;
        const int64_t other = interleaved ? (first ? i + 1 : i - 1) : (first ? i + half : i - half);
        const int64_t base = t * x.stride[0] + h * x.stride[1];
        const double mine = value_at(x, base + i), theirs = value_at(x, base + other);
        const double c = value_at(table, position * table.stride[0] + pair);
        const double s = value_at(table, position * table.stride[0] + half + pair);
        const double turned = first ? -theirs * s : theirs * s;
        expected.push(mine * c + turned, (std::fabs(mine * c) + std::fabs(turned)) * kEps * 3);
      }
    }
  }
  return expected;
}

Expected combine(const Tensor& rows, const Tensor& slot, const Tensor& weights) {
  Expected expected;
  for (int64_t t = 0; t < slot.dim(0); ++t) {
    for (int64_t i = 0; i < rows.dim(1); ++i) {
      double sum = 0, magnitude = 0;
      for (int64_t j = 0; j < slot.dim(1); ++j) {
        const auto row = static_cast<int64_t>(value_at(slot, t * slot.dim(1) + j));
        if (row < 0) continue;
        const double term =
            value_at(weights, t * weights.stride[0] + j) * value_at(rows, row * rows.stride[0] + i);
        sum += term;
        magnitude += std::fabs(term);
      }
      expected.push(sum, magnitude * kEps * 2.0 * (slot.dim(1) + 1));
    }
  }
  return expected;
}

namespace {

// Indices of the `count` largest values, best first, the lower index first among equals.
std::vector<int32_t> largest(const std::vector<double>& v, int64_t count) {
  std::vector<int32_t> order(v.size());
  for (size_t i = 0; i < v.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return v[a] > v[b]; });
  order.resize(count);
  return order;
}

}  // namespace

Routed route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec) {
  Routed result;
  const int64_t experts = logits.dim(1);
  const double roundings = chain(experts);
  for (int64_t t = 0; t < logits.dim(0); ++t) {
    std::vector<double> score(experts);
    double top = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t e = 0; e < experts; ++e) {
      score[e] = value_at(logits, t * logits.stride[0] + e);
      top = std::max(top, score[e]);
    }
    for (double& s : score) {
      s = spec.kind == RouterKind::kNoauxTcSigmoid ? 1 / (1 + std::exp(-s)) : std::exp(s - top);
      total += s;
    }
    if (spec.kind != RouterKind::kNoauxTcSigmoid) {
      for (double& s : score) s /= total;
    }
    std::vector<double> choice = score;
    if (correction_bias.defined()) {
      for (int64_t e = 0; e < experts; ++e) choice[e] += value_at(correction_bias, e);
    }
    if (spec.kind != RouterKind::kGreedySoftmax) {
      const int64_t size = experts / spec.n_group;
      std::vector<double> group_score;
      for (int64_t g = 0; g < spec.n_group; ++g) {
        std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
        std::sort(members.begin(), members.end(), std::greater<>());
        const bool two = spec.kind == RouterKind::kNoauxTcSigmoid && size > 1;
        group_score.push_back(two ? members[0] + members[1] : members[0]);
      }
      const std::vector<int32_t> kept = largest(group_score, spec.topk_group);
      for (int64_t e = 0; e < experts; ++e) {
        if (std::find(kept.begin(), kept.end(), e / size) == kept.end()) {
          choice[e] = -std::numeric_limits<double>::infinity();
        }
      }
    }
    const std::vector<int32_t> ids = largest(choice, spec.top_k);
    double sum = 0;
    for (int32_t e : ids) sum += score[e];
    for (int32_t e : ids) {
      double weight = score[e];
      if (spec.norm_topk_prob) weight /= sum + 1e-20;
      weight *= spec.routed_scaling_factor;
      result.ids.push_back(e);
      // exp within 4 roundings, sums of at most E positive terms, a division each.
      result.weights.push(weight, std::fabs(weight) * kEps * (8.0 + roundings));
    }
  }
  return result;
}

}  // namespace shoal::test
