#include "kernels/cpu/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cpp"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/matmul-inl.h"

#ifndef SHOAL_KERNELS_CPU_MATMUL_ONCE_
#define SHOAL_KERNELS_CPU_MATMUL_ONCE_
namespace shoal {

// Up to this many rows of x a weight is decoded in registers for all of them at once; with more, a
// panel of it is decoded once into scratch and used for every tile of rows.
inline constexpr int64_t kDirectRows = 4;
// A panel: kPanelN rows of W by kPanelK columns. Six rows of it and four of x, of kPanelK floats
// each, are what a register tile streams again and again: 10 x 4 KiB fit a 48 KiB L1, and one row
// covers each set of it exactly once. The panel, its accumulators and a block of kBlockM rows of x
// (192 + 192 + 256 KiB) stay in a 1 MiB L2.
inline constexpr int64_t kPanelN = 48;
inline constexpr int64_t kPanelK = 1024;
inline constexpr int64_t kBlockM = 64;
inline constexpr int64_t kMaxLanes = 16;

// Whether weights are decoded in registers, for all rows of x in one pass. A shard whose scale
// blocks do not begin at whole vectors goes through a panel even for one row: there the lanes run
// over k as they do everywhere.
inline bool is_direct(const MatMul& g) {
  if (g.m > kDirectRows) return false;
  if (!has_scales(g.w.data.dtype)) return true;
  const bool one_block = g.w.k() + g.w.col_offset <= g.w.block_cols;
  return one_block || (g.w.col_offset % kMaxLanes == 0 && g.w.block_cols % kMaxLanes == 0);
}

// Rows of W that a direct product hands out at a time: a multiple of every direct tile's width.
inline constexpr int64_t kDirectN = 24;

}  // namespace shoal
#endif

HWY_BEFORE_NAMESPACE();
namespace shoal {
namespace HWY_NAMESPACE {

// The tiles: kTileM * kTileN accumulators, and enough registers left for kTileM of x and one of W.
inline constexpr int kTileM = kManyRegisters ? 4 : 3;
inline constexpr int kTileN = kManyRegisters ? 6 : 4;
static_assert(kTileM <= kDirectRows && kPanelN % kTileN == 0);

// Direct tiles need independent accumulators to hide the latency of the FMA (4 cycles x 2 per
// cycle), and not so many rows at once that the prefetcher loses track of them.
template <typename T, int kM>
constexpr int direct_tile_n() {
  if (kM == 1) return 8;
  if (!kManyRegisters) return kM == 2 ? 4 : 3 - (kM == 4);
  return kM == 2 ? 8 : (WeightType<T>::kScaled ? 4 : 6);
}

template <typename T, int kM>
HWY_NOINLINE void direct(const MatMul& g, int64_t n0, int64_t n1) {
  constexpr int kN = direct_tile_n<T, kM>();
  const int64_t k = g.w.k();
  const float* x[kM];
  for (int i = 0; i < kM; ++i) x[i] = g.x + i * g.x_stride;
  for (int64_t n = n0; n < n1; n += kN) {
    // Past the end the last row is computed again and not written.
    int64_t rows[kN];
    for (int j = 0; j < kN; ++j) rows[j] = std::min<int64_t>(n + j, n1 - 1);
    VF acc[kM][kN];
    SHOAL_UNROLL for (int i = 0; i < kM; ++i) {
      SHOAL_UNROLL for (int j = 0; j < kN; ++j) acc[i][j] = hn::Zero(DF());
    }
    accumulate_weight<T, kM, kN>(x, g.w, rows, 0, k, acc);
    finish_tile<kM, kN>(acc, g, 0, n, n1 - n);
  }
}

// One tile over one panel of k: takes up its accumulators from `saved`, or writes the result.
template <int kM>
HWY_NOINLINE void panel_tile(const MatMul& g, const float* panel, int64_t panel_stride, int64_t n0,
                             int64_t valid_n, int64_t m0, int64_t k0, int64_t k1, float* saved) {
  const float* x[kM];
  for (int i = 0; i < kM; ++i) x[i] = g.x + (m0 + i) * g.x_stride + k0;
  WeightRow<float> w[kTileN];
  for (int j = 0; j < kTileN; ++j) {
    w[j] = {panel + std::min<int64_t>(j, valid_n - 1) * panel_stride, 0};
  }
  VF acc[kM][kTileN];
  SHOAL_UNROLL for (int i = 0; i < kM; ++i) {
    SHOAL_UNROLL for (int j = 0; j < kTileN; ++j) {
      acc[i][j] = k0 == 0 ? hn::Zero(DF()) : load(saved + (i * kTileN + j) * kLanes);
    }
  }
  accumulate<kM, kTileN>(x, w, 0, k1 - k0, acc);
  if (k1 == g.w.k()) {
    finish_tile<kM, kTileN>(acc, g, m0, n0, valid_n);
    return;
  }
  SHOAL_UNROLL for (int i = 0; i < kM; ++i) {
    SHOAL_UNROLL for (int j = 0; j < kTileN; ++j) {
      store(acc[i][j], saved + (i * kTileN + j) * kLanes);
    }
  }
}

template <typename T>
void panels(const MatMul& g, int64_t n0, int64_t n1, int64_t m0, int64_t m1, float* scratch) {
  float* decoded = scratch;                           // [kPanelN, kPanelK]
  float* accumulators = scratch + kPanelN * kPanelK;  // [tiles, kTileM, kTileN, kLanes]
  const int64_t k = g.w.k();
  for (int64_t k0 = 0; k0 < k; k0 += kPanelK) {
    const int64_t k1 = std::min(k, k0 + kPanelK);
    const float* panel = decoded;
    int64_t panel_stride = kPanelK;
    if constexpr (std::is_same_v<T, float>) {
      panel = g.w.data.row<const float>(n0) + k0;
      panel_stride = g.w.data.stride[0];
    } else {
      for (int64_t n = n0; n < n1; ++n) {
        decode_row<T>(g.w, n, k0, k1, decoded + (n - n0) * kPanelK);
      }
    }
    float* saved = accumulators;
    for (int64_t m = m0; m < m1; m += kTileM) {
      for (int64_t n = n0; n < n1; n += kTileN, saved += kTileM * kTileN * kLanes) {
        const float* tile_panel = panel + (n - n0) * panel_stride;
        const auto tile = [&](auto rows) HWY_ATTR {
          panel_tile<decltype(rows)::value>(g, tile_panel, panel_stride, n, n1 - n, m, k0, k1,
                                            saved);
        };
        switch (std::min<int64_t>(kTileM, m1 - m)) {
          case 1: tile(std::integral_constant<int, 1>()); break;
          case 2: tile(std::integral_constant<int, 2>()); break;
          case 3: tile(std::integral_constant<int, 3>()); break;
          default: tile(std::integral_constant<int, kTileM>()); break;
        }
      }
    }
  }
}

template <typename T>
void multiply_typed(const MatMul& g, int64_t n0, int64_t n1, int64_t m0, int64_t m1,
                    float* scratch) {
  if (!is_direct(g)) return panels<T>(g, n0, n1, m0, m1, scratch);
  switch (g.m) {
    case 1: return direct<T, 1>(g, n0, n1);
    case 2: return direct<T, 2>(g, n0, n1);
    case 3: return direct<T, 3>(g, n0, n1);
    default: return direct<T, 4>(g, n0, n1);
  }
}

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls f with the TypeTag of a weight.
template <typename F>
HWY_INLINE void with_weight_type(const Weight& w, const F& f) {
  const bool min = w.min.defined();
  switch (w.data.dtype) {
    case DType::kF32: return f(TypeTag<float>());
    case DType::kF16: return f(TypeTag<F16>());
    case DType::kBF16: return f(TypeTag<BF16>());
    case DType::kI8: return min ? f(TypeTag<Groups<I8, true>>()) : f(TypeTag<Groups<I8, false>>());
    case DType::kI4x2:
      return min ? f(TypeTag<Groups<I4x2, true>>()) : f(TypeTag<Groups<I4x2, false>>());
    default: return f(TypeTag<F8E4M3>());
  }
}

// Elements [m0, m1) x [n0, n1) of the product; all rows when is_direct(g).
void multiply(const MatMul& g, int64_t n0, int64_t n1, int64_t m0, int64_t m1, float* scratch) {
  with_weight_type(g.w, [&](auto tag) HWY_ATTR {
    multiply_typed<typename decltype(tag)::Type>(g, n0, n1, m0, m1, scratch);
  });
}

// Columns of row `row` as floats or, rounded, BF16.
void decode(const Weight& w, int64_t row, void* out, bool to_bf16) {
  with_weight_type(w, [&](auto tag) HWY_ATTR {
    using T = typename decltype(tag)::Type;
    if (to_bf16) {
      decode_row<T>(w, row, 0, w.k(), static_cast<BF16*>(out));
    } else {
      decode_row<T>(w, row, 0, w.k(), static_cast<float*>(out));
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal {
namespace {

HWY_EXPORT(multiply);
HWY_EXPORT(decode);

// How a product is cut into units of work. A unit's cost is in cycles of one core, roughly:
// decoding and loading cost a vector op or three per 16 weights, each row of x one FMA.
struct Units {
  int64_t panel_n, panels, block_m, blocks;
  int64_t cost;  // of one unit
  int64_t count() const { return panels * blocks; }

  Units(const MatMul& g, int num_threads) {
    const int64_t n = g.w.n();
    const bool direct = is_direct(g);
    panel_n = direct ? kDirectN : kPanelN;
    block_m = direct ? g.m : kBlockM;
    // Narrow products: smaller panels, so that all threads have work.
    while (!direct && panel_n > 12 && (n + panel_n - 1) / panel_n < 4 * num_threads) panel_n /= 2;
    panels = (n + panel_n - 1) / panel_n;
    blocks = (g.m + block_m - 1) / block_m;
    cost = panel_n * g.w.k() * (std::min(block_m, g.m) + 4);
  }
};

}  // namespace

int64_t matmul_scratch_floats() { return kPanelN * kPanelK + kBlockM * kPanelN * kMaxLanes * 2; }

void run_matmuls(std::span<const MatMul> products, ThreadPool& pool, ScratchFloats scratch) {
  const int threads = pool.num_threads();
  int64_t total = 0;
  for (const MatMul& g : products) {
    if (g.m > 0 && g.w.n() > 0) {
      const Units units(g, threads);
      total += units.count() * units.cost;
    }
  }
  // Worker t takes the units that begin in its share [total * t / threads, ...) of the cost, so
  // each gets contiguous weights. A share smaller than a hand-over (about 2 us) stays with the
  // caller.
  constexpr int64_t kCostPerHandOver = 64 * 1024;
  const int64_t workers = std::clamp<int64_t>(total / kCostPerHandOver, 1, threads);
  const auto share = [&](int64_t t) {
    return static_cast<int64_t>(static_cast<double>(total) / workers * t);
  };
  pool.parallel_for(workers, 1, [&](int64_t first, int64_t last, int worker) {
    const int64_t begin = share(first), end = last == workers ? total : share(last);
    int64_t before = 0;
    for (const MatMul& g : products) {
      if (g.m == 0 || g.w.n() == 0) continue;
      const Units units(g, threads);
      const auto first_at = [&](int64_t cost) {
        return std::clamp<int64_t>((cost - before + units.cost - 1) / units.cost, 0, units.count());
      };
      const int64_t u0 = begin <= before ? 0 : first_at(begin);
      const int64_t u1 = end <= before ? 0 : first_at(end);
      // Direct units are neighbours in n: one call streams all of them.
      if (is_direct(g)) {
        if (u0 < u1) {
          HWY_DYNAMIC_DISPATCH(multiply)
          (g, u0 * units.panel_n, std::min(u1 * units.panel_n, g.w.n()), 0, g.m, nullptr);
        }
      } else {
        for (int64_t u = u0; u < u1; ++u) {
          const int64_t n0 = u / units.blocks * units.panel_n,
                        m0 = u % units.blocks * units.block_m;
          HWY_DYNAMIC_DISPATCH(multiply)
          (g, n0, std::min(n0 + units.panel_n, g.w.n()), m0, std::min(m0 + units.block_m, g.m),
           scratch.base + worker * scratch.stride);
        }
      }
      before += units.count() * units.cost;
    }
  });
}

void decode_weight_row(const Weight& w, int64_t row, float* out) {
  HWY_DYNAMIC_DISPATCH(decode)(w, row, out, false);
}

void decode_weight_row(const Weight& w, int64_t row, BF16* out) {
  HWY_DYNAMIC_DISPATCH(decode)(w, row, out, true);
}

}  // namespace shoal
#endif  // HWY_ONCE
