#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/kernels/support/reference.h"

namespace shoal::test {
namespace {

std::vector<double> read(const Tensor& tensor, int64_t offset, int64_t n) {
  std::vector<double> result;
  for (int64_t i = 0; i < n; ++i) result.push_back(value_at(tensor, offset + i));
  return result;
}

int64_t slot_of(const PagedBatch& batch, int64_t sequence, int64_t position) {
  const Tensor& tables = batch.block_tables;
  const int64_t page =
      tables.as<int32_t>()[sequence * tables.stride[0] + position / batch.page_size];
  return page * batch.page_size + position % batch.page_size;
}

// Calls body(row, sequence, number of keys that it sees).
template <typename Body>
void for_each_query(const PagedBatch& batch, const Body& body) {
  const int32_t* start = batch.query_start.as<int32_t>();
  for (int64_t s = 0; s < batch.context_len.dim(0); ++s) {
    for (int64_t r = start[s]; r < start[s + 1]; ++r) {
      body(r, s, batch.context_len.as<int32_t>()[s] - (start[s + 1] - r) + 1);
    }
  }
}

void append(Expected& to, const Expected& from) {
  to.value.insert(to.value.end(), from.value.begin(), from.value.end());
  to.bound.insert(to.bound.end(), from.bound.begin(), from.bound.end());
}

}  // namespace

std::vector<double> cache_row(const CacheTensor& cache, int64_t slot, int64_t column, int64_t n) {
  std::vector<double> row;
  for (int64_t j = column; j < column + n; ++j) {
    const int64_t width = cache.data.dim(1);
    if (j >= width) {
      row.push_back(value_at(cache.rope, slot * cache.rope.stride[0] + j - width));
      continue;
    }
    double value = value_at(cache.data, slot * cache.data.stride[0] + j);
    if (cache.quantised()) {
      const int64_t group = j / (width / cache.groups());
      value *= value_at(cache.scale, slot * cache.scale.stride[0] + group);
    }
    row.push_back(value);
  }
  return row;
}

Expected attention(const std::vector<double>& q, const std::vector<std::vector<double>>& keys,
                   const std::vector<std::vector<double>>& values, double scale) {
  const size_t n = keys.size(), dv = values[0].size();
  std::vector<double> score(n, 0.0);
  double score_error = 0;
  const double roundings = chain(q.size());
  for (size_t i = 0; i < n; ++i) {
    double magnitude = 0;
    for (size_t j = 0; j < q.size(); ++j) {
      score[i] += scale * q[j] * keys[i][j];
      magnitude += std::fabs(scale * q[j] * keys[i][j]);
    }
    score_error = std::max(score_error, magnitude * kEps * roundings);
  }
  const double top = *std::max_element(score.begin(), score.end());
  double sum = 0;
  for (double& s : score) sum += s = std::exp(s - top);
  // exp turns an absolute error of the score into a relative one of p, in numerator and
  // denominator; s - max rounds once more; then come n roundings of each sum and one rescaling per
  // block.
  const double relative = 2 * (score_error + 8 * kEps) + kEps * (2.5 * n + 16);
  Expected expected;
  for (size_t j = 0; j < dv; ++j) {
    double value = 0, magnitude = 0;
    for (size_t i = 0; i < n; ++i) {
      value += score[i] / sum * values[i][j];
      magnitude += score[i] / sum * std::fabs(values[i][j]);
    }
    expected.push(value, magnitude * relative + 1e-30);
  }
  return expected;
}

Expected mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch, double scale,
                    int64_t kv_lora) {
  Expected expected;
  for_each_query(batch, [&](int64_t row, int64_t sequence, int64_t num_keys) {
    std::vector<std::vector<double>> keys, latent;
    for (int64_t p = 0; p < num_keys; ++p) {
      const int64_t slot = slot_of(batch, sequence, p);
      keys.push_back(cache_row(cache, slot, 0, q.dim(2)));
      latent.push_back(cache_row(cache, slot, 0, kv_lora));
    }
    for (int64_t h = 0; h < q.dim(1); ++h) {
      append(expected, attention(read(q, row * q.stride[0] + h * q.stride[1], q.dim(2)), keys,
                                 latent, scale));
    }
  });
  return expected;
}

Expected mla_expanded(const Tensor& q, const Tensor& kv, const Tensor& k_pe,
                      const Tensor& positions, double scale) {
  Expected expected;
  const int64_t rope = k_pe.dim(1), nope = q.dim(2) - rope, dv = kv.dim(2) - nope;
  for (int64_t t = 0; t < q.dim(0); ++t) {
    for (int64_t h = 0; h < q.dim(1); ++h) {
      std::vector<std::vector<double>> keys, rows;
      for (int64_t p = 0; p <= positions.as<int32_t>()[t]; ++p) {
        const int64_t offset = p * kv.stride[0] + h * kv.stride[1];
        std::vector<double> key = read(kv, offset, nope);
        for (double v : read(k_pe, p * k_pe.stride[0], rope)) key.push_back(v);
        keys.push_back(key);
        rows.push_back(read(kv, offset + nope, dv));
      }
      append(expected,
             attention(read(q, t * q.stride[0] + h * q.stride[1], q.dim(2)), keys, rows, scale));
    }
  }
  return expected;
}

Expected gqa_attention(const Tensor& q, const CacheTensor& k_cache, const CacheTensor& v_cache,
                       const PagedBatch& batch, const Ops::HeadMap& heads, double scale) {
  Expected expected;
  const int64_t d = q.dim(2);
  for_each_query(batch, [&](int64_t row, int64_t sequence, int64_t num_keys) {
    for (int64_t h = 0; h < q.dim(1); ++h) {
      const int64_t kv = (heads.first_q_head + h) / heads.group - heads.first_kv_head;
      std::vector<std::vector<double>> keys, rows;
      for (int64_t p = 0; p < num_keys; ++p) {
        const int64_t slot = slot_of(batch, sequence, p);
        keys.push_back(cache_row(k_cache, slot, kv * d, d));
        rows.push_back(cache_row(v_cache, slot, kv * d, d));
      }
      append(expected,
             attention(read(q, row * q.stride[0] + h * q.stride[1], d), keys, rows, scale));
    }
  });
  return expected;
}

}  // namespace shoal::test
