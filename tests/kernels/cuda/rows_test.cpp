// Verbs that work row by row on the device: embedding, copy, norms, add, silu_mul, rope, the cache,
// gather_rows, and the FP8 quantiser. Rows lie with and without gaps between them, so that both the
// vector and the element-wise accesses run; the gaps hold NaN going in and must still hold it
// coming out.
#include <cmath>
#include <cstring>

#include "kernels/cuda/quantize.h"
#include "tests/kernels/cuda/cuda_case.h"

namespace shoal::test {
namespace {

const std::vector<int64_t> kRows = {0, 1, 5, 33};
const std::vector<int64_t> kDims = {1, 7, 16, 31, 200};
const std::vector<int64_t> kGaps = {0, 3, 8};

Expected exactly(std::vector<double> value) {
  std::vector<double> bound(value.size(), 0.0);
  return {std::move(value), std::move(bound)};
}

double as_stored(double value, DType type) {
  const auto v = static_cast<float>(value);
  return type == DType::kBF16 ? to_float(to_bf16(v)) : v;
}

std::vector<double> as_stored(std::vector<double> values, DType type) {
  for (double& v : values) v = as_stored(v, type);
  return values;
}

// [rows, cols] with NaN everywhere, the gaps between rows too.
HostTensor poisoned(DType type, int64_t rows, int64_t cols, int64_t gap) {
  HostTensor t = HostTensor::strided(type, rows, cols, gap);
  std::memset(t.memory().data(), 0xff, t.memory().size());
  return t;
}

HostTensor random_rows(Random& random, DType type, int64_t rows, int64_t cols, int64_t gap,
                       float deviation = 1) {
  HostTensor t = poisoned(type, rows, cols, gap);
  random.fill(t, deviation);
  return t;
}

bool gaps_untouched(const HostTensor& t) {
  const int64_t size = dtype_size(t.view().dtype), rows = t.view().dim(0);
  const int64_t used = t.view().dim(1) * size, step = t.view().stride[0] * size;
  for (int64_t r = 0; r + 1 < rows; ++r) {
    for (int64_t i = used; i < step; ++i) {
      if (t.memory()[r * step + i] != std::byte{0xff}) return false;
    }
  }
  return true;
}

// "" if `device` holds what is expected and nothing between its rows was written.
std::string wrong(const OnDevice& device, const Expected& expected) {
  const HostTensor host = device.host();
  if (!gaps_untouched(host)) return "written between rows";
  return first_violation(host, expected);
}

}  // namespace

TEST_CASE("cuda embedding: rows of every type, zeros for rows held elsewhere", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(1);
    for (const auto& [type, asymmetric] : weight_formats()) {
      for (const DType to : kActivations) {
        for (const int64_t dim : kDims) {
          if (type == DType::kI4x2 && dim % 2 == 1) continue;
          for (const int64_t gap : kGaps) {
            INFO(to_string({type, asymmetric}) << " dim " << dim);
            const HostWeight table = random_weight(random, type, 10, dim, 16, 0, 0, asymmetric);
            OnDevice out(poisoned(to, 6, dim, gap));
            cuda_ops().embedding(OnDevice(HostTensor::ints({6}, {20, 29, 25, 19, 30, 0})),
                                 WeightOnDevice(table), 20, out);
            std::vector<double> expected;
            for (const int64_t row : {0, 9, 5}) {
              for (int64_t i = 0; i < dim; ++i) {
                expected.push_back(as_stored(weight_at(table.weight, row, i), to));
              }
            }
            expected.resize(6 * dim, 0.0);
            CHECK(wrong(out, exactly(expected)) == "");
          }
        }
      }
    }
    OnDevice none(HostTensor(DType::kF32, {0, 8}));
    cuda_ops().embedding(OnDevice(HostTensor::ints({0}, {})),
                         WeightOnDevice(random_weight(random, DType::kF32, 10, 8)), 0, none);
  });
}

TEST_CASE("cuda rms_norm against the reference, in place too", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(2);
    for (const DType from : kActivations) {
      for (const DType to : kActivations) {
        for (const int64_t rows : kRows) {
          for (const int64_t dim : {1, 7, 16, 200, 1000}) {
            for (const int64_t gap : kGaps) {
              INFO(dtype_name(from)
                   << " to " << dtype_name(to) << " [" << rows << ", " << dim << "] gap " << gap);
              const HostTensor x = random_rows(random, from, rows, dim, gap);
              const HostTensor weight = random.tensor(DType::kF32, {dim});
              const Expected expected = stored_as(rms_norm(x, weight, 1e-6f), to);
              OnDevice x_device(x), weight_device(weight), out(poisoned(to, rows, dim, gap));
              cuda_ops().rms_norm(x_device, weight_device, 1e-6f, out);
              CHECK(wrong(out, expected) == "");
              if (from != to) continue;
              cuda_ops().rms_norm(x_device, weight_device, 1e-6f, x_device);
              CHECK(wrong(x_device, expected) == "");
            }
          }
        }
      }
    }
  });
}

TEST_CASE("cuda add_rms_norm: residual and out of any type, the residual as it is stored",
          "[cuda][rows]") {
  for_each_schedule([] {
    Random random(3);
    for (const DType from : kActivations) {
      for (const DType between : kActivations) {
        for (const DType to : kActivations) {
          for (const auto& [rows, dim, gap] : std::vector<std::tuple<int, int, int>>{
                   {0, 16, 0}, {1, 1, 0}, {3, 7, 2}, {5, 64, 8}, {2, 200, 3}, {33, 48, 0}}) {
            const HostTensor x = random_rows(random, from, rows, dim, gap);
            HostTensor sum = random_rows(random, between, rows, dim, gap);
            const HostTensor weight = random.tensor(DType::kF32, {dim});
            std::vector<double> sums = values(sum);
            const std::vector<double> added = values(x);
            for (size_t i = 0; i < sums.size(); ++i) {
              sums[i] = as_stored(float(sums[i]) + float(added[i]), between);
            }
            OnDevice residual(sum), out(poisoned(to, rows, dim, gap));
            cuda_ops().add_rms_norm(OnDevice(x), residual, OnDevice(weight), 1e-6f, out);
            CHECK(wrong(residual, exactly(sums)) == "");
            sum = residual.host();
            CHECK(wrong(out, stored_as(rms_norm(sum, weight, 1e-6f), to)) == "");
          }
        }
      }
    }
  });
}

TEST_CASE("cuda norms of rows longer than the block's registers hold", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(4);
    for (const DType type : kActivations) {
      for (const int64_t dim : {16384, 16385, 20000}) {
        const HostTensor x = random.tensor(type, {2, dim});
        const HostTensor weight = random.tensor(DType::kF32, {dim});
        OnDevice x_device(x), weight_device(weight), out(poisoned(type, 2, dim, 0));
        cuda_ops().rms_norm(x_device, weight_device, 1e-6f, out);
        CHECK(wrong(out, stored_as(rms_norm(x, weight, 1e-6f), type)) == "");
        OnDevice residual(HostTensor(DType::kF32, {2, dim}));
        cuda_ops().add_rms_norm(x_device, residual, weight_device, 1e-6f, out);
        CHECK(wrong(residual, exactly(values(x))) == "");
        CHECK(wrong(out, stored_as(rms_norm(x, weight, 1e-6f), type)) == "");
      }
    }
  });
}

TEST_CASE("cuda add and copy are exact, and convert", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(5);
    for (const DType from : kActivations) {
      for (const DType to : kActivations) {
        for (const int64_t rows : kRows) {
          for (const int64_t dim : kDims) {
            for (const int64_t gap : kGaps) {
              const HostTensor x = random_rows(random, from, rows, dim, gap);
              const HostTensor y = random_rows(random, to, rows, dim, 0);
              std::vector<double> expected = values(y);
              const std::vector<double> added = values(x);
              for (size_t i = 0; i < expected.size(); ++i) {
                expected[i] = as_stored(float(expected[i]) + float(added[i]), to);
              }
              OnDevice x_device(x), y_device(y), out(poisoned(to, rows, dim, gap));
              cuda_ops().add(x_device, y_device);
              CHECK(wrong(y_device, exactly(expected)) == "");
              cuda_ops().copy(x_device, out);
              CHECK(wrong(out, exactly(as_stored(added, to))) == "");
            }
          }
        }
        // Heads of a wider row, both ways, at offsets that vectors cannot use and at one that they
        // can.
        for (const auto& [begin, end] : std::vector<std::pair<int, int>>{{5, 18}, {8, 24}}) {
          const int64_t width = end - begin;
          const HostTensor wide = random.tensor(from, {4, 3, 24});
          OnDevice wide_device(wide), packed(HostTensor(to, {4, 3, width}));
          cuda_ops().copy(wide_device.view().slice(2, begin, end), packed);
          CHECK(first_violation(packed.host(),
                                exactly(as_stored(values(wide.view().slice(2, begin, end)), to))) ==
                "");
          const HostTensor fresh = random.tensor(to, {4, 3, width});
          cuda_ops().copy(OnDevice(fresh), wide_device.view().slice(2, begin, end));
          const HostTensor result = wide_device.host();
          CHECK(first_violation(result.view().slice(2, begin, end),
                                exactly(as_stored(values(fresh), from))) == "");
          CHECK(values(result.view().slice(2, 0, begin)) == values(wide.view().slice(2, 0, begin)));
        }
        const HostTensor line = random.tensor(from, {9});
        OnDevice copied(HostTensor(to, {9}));
        cuda_ops().copy(OnDevice(line), copied);
        CHECK(first_violation(copied.host(), exactly(as_stored(values(line), to))) == "");
      }
    }
  });
}

TEST_CASE("cuda silu_mul over the whole range of exp, also in place", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(6);
    for (const DType type : kActivations) {
      for (const int64_t rows : kRows) {
        for (const int64_t dim : kDims) {
          for (const int64_t gap : kGaps) {
            const HostTensor gate = random_rows(random, type, rows, dim, gap, 40);
            const HostTensor up = random_rows(random, type, rows, dim, 0);
            const Expected expected = stored_as(silu_mul(gate, up), type);
            OnDevice gate_device(gate), up_device(up), out(poisoned(type, rows, dim, gap));
            cuda_ops().silu_mul(gate_device, up_device, out);
            CHECK(wrong(out, expected) == "");
            cuda_ops().silu_mul(gate_device, up_device, gate_device);
            CHECK(wrong(gate_device, expected) == "");
          }
        }
      }
    }
    // Densely, so that every piece of the exponential is met, and beyond its ends.
    HostTensor gate(DType::kF32, {1, 40001}), up(DType::kF32, {1, 40001});
    for (int64_t i = 0; i <= 40000; ++i) {
      gate.view().as<float>()[i] = static_cast<float>(i - 20000) * 0.005f;
      up.view().as<float>()[i] = 1;
    }
    OnDevice out(up);
    cuda_ops().silu_mul(OnDevice(gate), OnDevice(up), out);
    CHECK(wrong(out, silu_mul(gate, up)) == "");
    gate.view().as<float>()[0] = std::nanf("");
    gate.view().as<float>()[1] = 1e30f;
    gate.view().as<float>()[2] = -1e30f;
    cuda_ops().silu_mul(OnDevice(gate), OnDevice(up), out);
    const HostTensor ends = out.host();
    CHECK(std::isnan(ends.view().as<float>()[0]));
    CHECK(ends.view().as<float>()[1] == 1e30f);
    CHECK(std::fabs(ends.view().as<float>()[2]) < 1e-6f);
  });
}

TEST_CASE("cuda rope: both pairings, in place on part of a wider head", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(7);
    for (const DType type : kActivations) {
      for (const int64_t d : {2, 6, 16, 32, 34, 64, 128}) {
        for (const int64_t first : {0, 4, 8}) {
          for (const bool interleaved : {true, false}) {
            INFO(dtype_name(type) << " d " << d << " first " << first << " interleaved "
                                  << interleaved);
            const HostTensor heads = random.tensor(type, {5, 3, d + 16});
            const HostTensor table = random.tensor(DType::kF32, {50, d});
            const HostTensor positions = HostTensor::ints({5}, {0, 49, 3, 3, 17});
            const Expected expected = stored_as(
                rope(heads.view().slice(2, first, first + d), positions, table, interleaved), type);
            OnDevice device(heads);
            cuda_ops().rope(device.view().slice(2, first, first + d), OnDevice(positions),
                            OnDevice(table), interleaved);
            const HostTensor result = device.host();
            CHECK(first_violation(result.view().slice(2, first, first + d), expected) == "");
            CHECK(values(result.view().slice(2, 0, first)) ==
                  values(heads.view().slice(2, 0, first)));
            CHECK(values(result.view().slice(2, first + d, d + 16)) ==
                  values(heads.view().slice(2, first + d, d + 16)));
          }
        }
      }
      OnDevice none(HostTensor(type, {0, 3, 8}));
      cuda_ops().rope(none, OnDevice(HostTensor::ints({0}, {})),
                      OnDevice(random.tensor(DType::kF32, {50, 8})), true);
    }
  });
}

TEST_CASE("cuda write_cache and gather_cache: all types, part columns, permuted pages",
          "[cuda][rows]") {
  for_each_schedule([] {
    Random random(8);
    for (const DType type : kActivations) {
      for (const DType cached : kActivations) {
        for (const auto& [dim, first] :
             std::vector<std::pair<int64_t, int64_t>>{{1, 9}, {7, 9}, {16, 8}, {48, 0}, {65, 9}}) {
          const int32_t page_size = 4;
          const int64_t width = dim + first;
          const HostTensor cache = random.tensor(cached, {8 * page_size, width});
          std::vector<double> expected = values(cache);
          const std::vector<int32_t> pages = random.permutation(8);
          const int64_t tokens = 13;
          std::vector<int32_t> slots;
          for (int64_t p = 3; p < 3 + tokens; ++p) {
            slots.push_back(pages[p / page_size] * page_size + static_cast<int32_t>(p % page_size));
          }
          const HostTensor x = random_rows(random, type, tokens, dim, 2);
          OnDevice device(cache);
          cuda_ops().write_cache(OnDevice(x), OnDevice(HostTensor::ints({tokens}, slots)),
                                 {device.view().slice(1, first, width)});
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t i = 0; i < dim; ++i) {
              expected[slots[t] * width + first + i] =
                  as_stored(value_at(x, t * x.view().stride[0] + i), cached);
            }
          }
          CHECK(first_violation(device.host(), exactly(expected)) == "");

          OnDevice out(poisoned(type, tokens, width, 3));
          const OnDevice table(HostTensor::ints({8}, pages));
          cuda_ops().gather_cache({device}, table, page_size, 3, 3 + tokens, out);
          std::vector<double> rows;
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t i = 0; i < width; ++i) {
              rows.push_back(as_stored(expected[slots[t] * width + i], type));
            }
          }
          CHECK(wrong(out, exactly(rows)) == "");
          OnDevice none(HostTensor(type, {0, width}));
          cuda_ops().gather_cache({device}, table, page_size, 5, 5, none);
        }
      }
    }
  });
}

TEST_CASE("cuda write_cache to codes has the CPU's bits, gather_cache the CPU's values",
          "[cuda][rows]") {
  struct Shape {
    int64_t groups, group, rope, gap;
  };
  const std::unique_ptr<Ops> cpu = make_cpu_ops(1);
  for_each_schedule([&] {
    Random random(14);
    for (const DType code : {DType::kF8E4M3, DType::kI8}) {
      for (const Shape& s : {Shape{1, 512, 64, 0}, Shape{1, 33, 6, 1}, Shape{3, 7, 0, 2},
                             Shape{2, 128, 0, 0}, Shape{2, 8, 8, 8}, Shape{1, 12, 2, 0}}) {
        for (const DType type : kActivations) {
          INFO(dtype_name(code) << " " << s.groups << " x " << s.group << " + " << s.rope << " of "
                                << dtype_name(type));
          const int32_t page_size = 4;
          const int64_t tokens = 13, n = s.groups * s.group, width = n + s.rope;
          const HostCache cache = random_cache(random, code, 8 * page_size, n, s.groups, s.rope);
          CacheOnDevice device(cache);
          std::vector<int32_t> slots = random.permutation(8 * page_size);
          slots.resize(tokens);
          const HostTensor x = random_rows(random, type, tokens, width, s.gap);
          HostTensor floats(DType::kF32, {tokens, width});
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t i = 0; i < width; ++i) {
              floats.view().row<float>(t)[i] =
                  static_cast<float>(value_at(x, t * x.view().stride[0] + i));
            }
          }
          cpu->write_cache(floats, HostTensor::ints({tokens}, slots), cache);
          cuda_ops().write_cache(OnDevice(x), OnDevice(HostTensor::ints({tokens}, slots)), device);
          CHECK(device.host().bytes() == cache.bytes());

          const HostTensor table = HostTensor::ints({8}, random.permutation(8));
          HostTensor expected(DType::kF32, {tokens, width});
          cpu->gather_cache(cache, table, page_size, 3, 3 + tokens, expected);
          std::vector<double> rows;
          for (const double v : values(expected)) rows.push_back(as_stored(v, type));
          OnDevice out(poisoned(type, tokens, width, s.gap));
          cuda_ops().gather_cache(device, OnDevice(table), page_size, 3, 3 + tokens, out);
          CHECK(wrong(out, exactly(rows)) == "");
        }
      }
    }
    // No rows, and groups of zeros, of what is too small for a scale, and with a NaN.
    const HostCache cache = random_cache(random, DType::kF8E4M3, 3, 32, 1);
    CacheOnDevice device(cache);
    cuda_ops().write_cache(OnDevice(HostTensor(DType::kF32, {0, 32})),
                           OnDevice(HostTensor::ints({0}, {})), device);
    CHECK(device.host().bytes() == cache.bytes());
    const HostTensor x(DType::kF32, {3, 32});
    std::fill_n(x.view().as<float>(), 32, 0.0f);
    std::fill_n(x.view().row<float>(1), 32, 1e-38f);
    std::fill_n(x.view().row<float>(2), 32, 1.0f);
    x.view().row<float>(2)[17] = std::nanf("");
    cuda_ops().write_cache(OnDevice(x), OnDevice(HostTensor::ints({3}, {0, 1, 2})), device);
    OnDevice out(HostTensor(DType::kF32, {3, 32}));
    cuda_ops().gather_cache(device, OnDevice(HostTensor::ints({1}, {0})), 3, 0, 3, out);
    const std::vector<double> got = values(out.host());
    for (size_t i = 0; i < got.size(); ++i) {
      if (i < 64) CHECK(got[i] == 0);
      if (i >= 64) CHECK(std::isnan(got[i]));
    }
  });
}

TEST_CASE("cuda caches of more than 2^31 elements", "[cuda][rows]") {
  // The last three rows of such a cache, whose other rows are nowhere.
  Random random(9);
  const int64_t slots = 5'000'003, dim = 576, page_size = 1;
  OnDevice tail(HostTensor(DType::kBF16, {3, dim}));
  Tensor cache(nullptr, DType::kBF16, {slots, dim});
  cache.data = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(tail.view().data) -
                                       static_cast<uintptr_t>((slots - 3) * dim * 2));
  const HostTensor x = random.tensor(DType::kBF16, {3, dim});
  const HostTensor rows = HostTensor::ints({3}, {5'000'000, 5'000'001, 5'000'002});
  cuda_ops().write_cache(OnDevice(x), OnDevice(rows), {cache});
  CHECK(tail.host().bytes() == x.bytes());
  OnDevice out(HostTensor(DType::kF32, {3, dim}));
  cuda_ops().gather_cache({cache}, OnDevice(rows), page_size, 0, 3, out);
  CHECK(values(out.host()) == values(x));
}

TEST_CASE("cuda write_cache rounds every kind of float32 as to_bf16 does", "[cuda][rows]") {
  const int64_t n = 1 << 16;
  HostTensor x(DType::kF32, {1, n});
  OnDevice cache(HostTensor(DType::kBF16, {1, n}));
  const OnDevice slot(HostTensor::ints({1}, {0}));
  for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
    for (int64_t i = 0; i < n; ++i) {
      x.view().as<uint32_t>()[i] = (static_cast<uint32_t>(i) << 16) | low;
    }
    cuda_ops().write_cache(OnDevice(x), slot, {cache});
    const HostTensor rounded = cache.host();
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float value = x.view().as<float>()[i];
      const BF16 got = rounded.view().as<BF16>()[i];
      wrong += std::isnan(value) ? !std::isnan(to_float(got)) : got.bits != to_bf16(value).bits;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("cuda gather_rows copies rows in any order, repeated ones too", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(10);
    for (const DType type : kActivations) {
      for (const auto& [dim, gap] : std::vector<std::pair<int, int>>{{37, 0}, {64, 8}, {64, 3}}) {
        const HostTensor x = random_rows(random, type, 5, dim, gap);
        const std::vector<int32_t> rows = {4, 0, 0, 3, 2, 4, 1};
        OnDevice out(poisoned(type, 7, dim, gap));
        cuda_ops().gather_rows(OnDevice(x), OnDevice(HostTensor::ints({7}, rows)), out);
        std::vector<double> expected;
        for (const int32_t r : rows) {
          for (int64_t i = 0; i < dim; ++i) {
            expected.push_back(value_at(x, r * x.view().stride[0] + i));
          }
        }
        CHECK(wrong(out, exactly(expected)) == "");
      }
    }
  });
}

TEST_CASE("cuda quantize_1x128: values, scales by token, padding", "[cuda][rows]") {
  for_each_schedule([] {
    Random random(11);
    for (const DType type : kActivations) {
      for (const auto& [tokens, padded, dim, gap] : std::vector<std::tuple<int, int, int, int>>{
               {1, 4, 128, 0}, {5, 8, 640, 4}, {17, 20, 576, 1}, {3, 3, 130, 0}, {0, 4, 256, 0}}) {
        INFO(dtype_name(type) << " [" << tokens << ", " << dim << "] padded to " << padded);
        HostTensor x = random_rows(random, type, tokens, dim, gap);
        if (tokens > 1) {  // a group of zeros, and one of almost nothing
          std::memset(x.view().data, 0, 128 * dtype_size(type));
          for (int64_t i = 0; i < 128 && type == DType::kF32; ++i) {
            x.view().row<float>(1)[i] = i % 2 == 0 ? 1e-38f : -1e-41f;
          }
        }
        const int64_t groups = (dim + 127) / 128;
        OnDevice q(poisoned(DType::kF8E4M3, padded, dim, 0));
        OnDevice scales(poisoned(DType::kF32, groups, padded, 0));
        const OnDevice x_device(x);
        quantize_1x128(x_device, q.view().data, scales.view().as<float>(), padded,
                       cuda_device().stream());
        const HostTensor q_host = q.host(), scales_host = scales.host();
        int64_t bad = 0;
        for (int64_t t = 0; t < padded; ++t) {
          for (int64_t g = 0; g < groups; ++g) {
            const double scale = value_at(scales_host, g * padded + t);
            double largest = 0;
            for (int64_t i = 128 * g; i < std::min<int64_t>(dim, 128 * g + 128); ++i) {
              const double v = t < tokens ? value_at(x, t * x.view().stride[0] + i) : 0.0;
              const double code = value_at(q_host, t * dim + i);
              largest = std::max(largest, std::fabs(v));
              // e4m3 has 4 bits of significance: half a unit is 2^-4 of the value; below its
              // smallest normal 2^-6, half of 2^-9. The division by the scale adds float32's
              // roundings.
              const double bound =
                  scale * std::max(std::fabs(v / scale) * 0x1p-4, 0x1p-10) * 1.0001;
              bad += !(std::fabs(code * scale - v) <= bound) || !(std::fabs(code) <= 448);
            }
            const double exact = t < tokens ? std::max(largest, 0x1p-100) / 448 : 1.0;
            bad += !(std::fabs(scale - exact) <= exact * 0x1p-23);
          }
        }
        CHECK(bad == 0);
      }
    }
    HostTensor broken = random.tensor(DType::kF32, {1, 256});
    broken.view().as<float>()[3] = std::nanf("");
    broken.view().as<float>()[200] = INFINITY;
    OnDevice q(HostTensor(DType::kF8E4M3, {4, 256})), scales(HostTensor(DType::kF32, {2, 4}));
    quantize_1x128(OnDevice(broken), q.view().data, scales.view().as<float>(), 4,
                   cuda_device().stream());
    CHECK(std::isnan(value_at(q.host(), 3)));
    CHECK(std::isnan(value_at(q.host(), 200) * value_at(scales.host(), 4)));
  });
}

TEST_CASE("cuda verbs refuse tensors that do not fit", "[cuda][rows]") {
  Random random(12);
  Ops& ops = cuda_ops();
  const OnDevice x(random.tensor(DType::kF32, {2, 8})), y(random.tensor(DType::kF32, {2, 9}));
  const OnDevice half(random.tensor(DType::kF16, {2, 8})), ids(HostTensor::ints({2}, {0, 1}));
  const OnDevice b(random.tensor(DType::kBF16, {2, 8})), weight(random.tensor(DType::kF32, {8}));
  const OnDevice heads(random.tensor(DType::kF32, {2, 1, 8}));
  CHECK_THROWS_AS(ops.add(x, y), Bug);
  CHECK_THROWS_AS(ops.copy(x, y), Bug);
  CHECK_THROWS_AS(ops.copy(half, x), Bug);
  CHECK_THROWS_AS(ops.silu_mul(x, y, y), Bug);
  CHECK_THROWS_AS(ops.silu_mul(x, x, b), Bug);
  CHECK_THROWS_AS(ops.rms_norm(x, x, 1e-6f, x), Bug);
  CHECK_THROWS_AS(ops.add_rms_norm(x, y, weight, 1e-6f, x), Bug);
  CHECK_THROWS_AS(ops.embedding(ids, {.data = y}, 0, x), Bug);
  CHECK_THROWS_AS(ops.embedding(x, {.data = x}, 0, x), Bug);
  CHECK_THROWS_AS(ops.gather_rows(y, ids, x), Bug);
  CHECK_THROWS_AS(ops.rope(heads, ids, y, true), Bug);
  CHECK_THROWS_AS(ops.write_cache(y, ids, {x}), Bug);
  CHECK_THROWS_AS(ops.write_cache(x, ids, {y}), Bug);
  CHECK_THROWS_AS(ops.gather_cache({x}, ids, 1, 0, 3, x), Bug);
  CHECK_THROWS_AS(quantize_1x128(x, nullptr, nullptr, 1, cuda_device().stream()), Bug);
}

}  // namespace shoal::test
