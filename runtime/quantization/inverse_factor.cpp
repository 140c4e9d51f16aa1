// With rows and columns reversed, H = C C^T; then U is C^-1, reversed. Both steps go by blocks of
// columns: what is summed up in one place stays in the cache, and threads share what does not
// depend on each other. Every sum has one order, whoever computes it.
#include "runtime/quantization/inverse_factor.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <thread>

namespace shoal {
namespace {

constexpr int64_t kBlock = 64;

// body(i) for 0 <= i < count, by threads that take the next when they are free.
void share(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) body(i);
  };
  std::vector<std::jthread> workers;
  for (int64_t t = 1; t < std::min<int64_t>(threads, count); ++t) workers.emplace_back(work);
  work();
}

// out[0, count) -= factor * x[0, count).
inline void subtract(double* __restrict out, double factor, const double* __restrict x,
                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] -= factor * x[i];
}

// The columns [begin, end) of rows from `begin` on are complete sums; makes them columns of C.
bool factor_columns(double* c, int64_t k, int64_t begin, int64_t end, int threads) {
  for (int64_t j = begin; j < end; ++j) {
    double* row = c + j * k;
    for (int64_t l = begin; l < j; ++l) row[j] -= row[l] * row[l];
    if (!(row[j] > 0) || !std::isfinite(row[j])) return false;
    row[j] = std::sqrt(row[j]);
    for (int64_t i = j + 1; i < end; ++i) {
      double sum = c[i * k + j];
      for (int64_t l = begin; l < j; ++l) sum -= c[i * k + l] * row[l];
      c[i * k + j] = sum / row[j];
    }
  }
  share((k - end + kBlock - 1) / kBlock, threads, [&](int64_t part) {
    const int64_t first = end + part * kBlock;
    for (int64_t i = first; i < std::min(first + kBlock, k); ++i) {
      double* row = c + i * k;
      for (int64_t j = begin; j < end; ++j) {
        double sum = row[j];
        for (int64_t l = begin; l < j; ++l) sum -= row[l] * c[j * k + l];
        row[j] = sum / c[j * k + j];
      }
    }
  });
  return true;
}

// H = C C^T in place, in the lower triangle.
bool factorize(double* c, int64_t k, int threads) {
  std::vector<double> panel(kBlock * k);  // the block's columns as rows
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, k);
    if (!factor_columns(c, k, begin, end, threads)) return false;
    for (int64_t i = end; i < k; ++i) {
      for (int64_t l = begin; l < end; ++l) panel[(l - begin) * k + i] = c[i * k + l];
    }
    share((k - end + kBlock - 1) / kBlock, threads, [&](int64_t part) {
      const int64_t first = end + part * kBlock;
      for (int64_t i = first; i < std::min(first + kBlock, k); ++i) {
        for (int64_t l = begin; l < end; ++l) {
          subtract(c + i * k + end, c[i * k + l], panel.data() + (l - begin) * k + end,
                   i + 1 - end);
        }
      }
    });
  }
  return true;
}

}  // namespace

std::vector<float> inverse_factor(const std::vector<double>& h, int64_t k, int threads) {
  std::vector<double> c(k * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j <= i; ++j) c[i * k + j] = h[(k - 1 - j) * k + (k - 1 - i)];
  }
  if (!factorize(c.data(), k, threads)) return {};
  std::vector<float> upper(k * k);
  // Some columns of C^-1, each row from the rows above it.
  share((k + kBlock - 1) / kBlock, threads, [&](int64_t part) {
    const int64_t begin = part * kBlock, width = std::min(kBlock, k - begin);
    std::vector<double> inverse((k - begin) * width);
    for (int64_t i = begin; i < k; ++i) {
      double* row = inverse.data() + (i - begin) * width;
      if (i - begin < width) row[i - begin] = 1;
      for (int64_t l = begin; l < i; ++l) {
        subtract(row, c[i * k + l], inverse.data() + (l - begin) * width, width);
      }
      for (int64_t j = 0; j < width; ++j) {
        row[j] /= c[i * k + i];
        if (begin + j > i) continue;
        upper[(k - 1 - i) * k + (k - 1 - begin - j)] = static_cast<float>(row[j]);
      }
    }
  });
  return upper;
}

}  // namespace shoal
