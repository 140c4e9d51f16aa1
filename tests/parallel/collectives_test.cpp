// Collectives as a table of verb x size x counts. Inputs are small integers made from (rank,
// index), so that every rank knows what the one right answer is, and exactly.
#include "parallel/collectives.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <numeric>

#include "parallel/shard.h"
#include "tests/parallel/support/device_values.h"
#include "tests/parallel/support/values.h"
#include "tests/parallel/support/world.h"

namespace shoal::test {
namespace {

using Counts = std::vector<int64_t>;

int64_t sum_of(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// Rows per rank: even, uneven, with ranks that have none, all with one rank, none at all.
std::vector<Counts> row_counts(int size) {
  std::vector<Counts> all(7, Counts(size, 0));
  for (int r = 0; r < size; ++r) {
    all[0][r] = 1;
    all[1][r] = 8;
    all[2][r] = 3 * r + 1;
    all[3][r] = r % 2 ? 5 : 0;
    all[4][r] = r == 0 ? 9 : 0;
    all[5][r] = r == size - 1 ? 9 : 0;
    // all[6]: none
  }
  return all;
}

constexpr int64_t kDims[] = {1, 7, 128, 2048};

// What the last verb sent.
class Sent {
 public:
  int64_t bytes() const { return world().comm->bytes_sent() - before_; }

 private:
  int64_t before_ = world().comm->bytes_sent();
};

TEST_CASE("all_reduce_sum: exact sums, and the bytes of docs/parallelism.md") {
  const int size = world().size();
  // 4096 floats are the last one-shot size, 65537 has slices of unequal length.
  for (int64_t count : {0, 1, 3, 15, 16, 17, 64, 1000, 4095, 4096, 4097, 65537, 1 << 18}) {
    CAPTURE(count);
    std::vector<float> x(count), expected(count, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = exact_value(world().rank(), i);
      for (int r = 0; r < size; ++r) expected[i] += exact_value(r, i);
    }
    const OnDevice<float> sum(x, {count});
    Sent sent;
    world().comm->all_reduce_sum(sum);
    REQUIRE(sum.host() == expected);
    int64_t bytes = 0;
    if (size > 1 && (size == 2 || count * 4 <= world().one_round_bytes)) {
      bytes = (size - 1) * count * 4;
    } else if (size > 1) {
      const int64_t own = split_evenly(count, size, 16)[world().rank()].size();
      bytes = (count - own + (size - 1) * own) * 4;
    }
    CHECK(sent.bytes() == bytes);
  }
}

// Of a sum of `size` values in [-1, 1) against another order of additions: each rounds by 2^-24 of a
// partial sum of at most `size`, in both.
double order_bound(int size) { return 2.0 * (size - 1) * size * 0x1p-24; }

TEST_CASE("all_reduce_sum: the same bits on every rank, those of the sum in rank order") {
  const int size = world().size();
  for (int64_t count : {1, 100, 4096, 5000, 100'003}) {
    CAPTURE(count);
    std::vector<float> x(count), expected(count);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = random_value(world().rank(), i);
      expected[i] = random_value(0, i);
      for (int r = 1; r < size; ++r) expected[i] += random_value(r, i);
    }
    const OnDevice<float> tensor(x, {count});
    world().comm->all_reduce_sum(tensor);
    const std::vector<float> sum = tensor.host();
    if (world().sums_in_rank_order) {
      REQUIRE(std::memcmp(sum.data(), expected.data(), count * sizeof(float)) == 0);
    }
    double worst = 0;
    for (int64_t i = 0; i < count; ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(sum[i]) - expected[i]));
    }
    REQUIRE(worst <= order_bound(size));
    for (const auto& other : world().group->gather(std::as_bytes(std::span(sum)))) {
      REQUIRE(std::memcmp(other.data(), sum.data(), count * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("all_reduce_sum takes any shape") {
  const OnDevice<float> x(std::vector<float>(2 * 3 * 4, static_cast<float>(world().rank() + 1)),
                          {2, 3, 4});
  world().comm->all_reduce_sum(x);
  const int size = world().size();
  for (float value : x.host()) REQUIRE(value == static_cast<float>(size * (size + 1) / 2));
}

TEST_CASE("all_gather_rows: everybody's rows in rank order") {
  const int size = world().size();
  for (const Counts& rows : row_counts(size)) {
    for (int64_t dim : kDims) {
      CAPTURE(rows, dim);
      std::vector<float> local(rows[world().rank()] * dim), expected;
      for (size_t i = 0; i < local.size(); ++i) local[i] = exact_value(world().rank(), i);
      for (int r = 0; r < size; ++r) {
        for (int64_t i = 0; i < rows[r] * dim; ++i) expected.push_back(exact_value(r, i));
      }
      const OnDevice<float> from(local, {rows[world().rank()], dim}), out({sum_of(rows), dim});
      Sent sent;
      world().comm->all_gather_rows(from, rows, out);
      REQUIRE(out.host() == expected);
      CHECK(sent.bytes() == (size - 1) * rows[world().rank()] * dim * 4);
    }
  }
}

TEST_CASE("all_gather_rows: I32") {
  const int size = world().size();
  const OnDevice<int32_t> local({world().rank(), -1}, {2, 1}), out({2 * size, 1});
  std::vector<int32_t> expected;
  for (int r = 0; r < size; ++r) expected.insert(expected.end(), {r, -1});
  world().comm->all_gather_rows(local, Counts(size, 2), out);
  CHECK(out.host() == expected);
}

TEST_CASE("reduce_scatter_rows: this rank's rows of the sum, in rank order") {
  const int size = world().size();
  const int rank = world().rank();
  for (const Counts& rows : row_counts(size)) {
    for (int64_t dim : kDims) {
      CAPTURE(rows, dim);
      const int64_t total = sum_of(rows);
      const int64_t first = std::accumulate(rows.begin(), rows.begin() + rank, int64_t{0}) * dim;
      std::vector<float> x(total * dim), expected(rows[rank] * dim);
      for (size_t i = 0; i < x.size(); ++i) x[i] = random_value(rank, i);
      for (size_t i = 0; i < expected.size(); ++i) {
        expected[i] = random_value(0, first + i);
        for (int r = 1; r < size; ++r) expected[i] += random_value(r, first + i);
      }
      const OnDevice<float> from(x, {total, dim}), out({rows[rank], dim});
      Sent sent;
      world().comm->reduce_scatter_rows(from, rows, out);
      const std::vector<float> sum = out.host();
      if (world().sums_in_rank_order) REQUIRE(sum == expected);
      double worst = 0;
      for (size_t i = 0; i < sum.size(); ++i) {
        worst = std::max(worst, std::abs(static_cast<double>(sum[i]) - expected[i]));
      }
      REQUIRE(worst <= order_bound(size));
      REQUIRE(from.host() == x);
      CHECK(sent.bytes() == (total - rows[rank]) * dim * 4);
    }
  }
}

// Rows that rank `from` has for rank `to` in pattern p: even, uneven, one way only, none.
int64_t rows_from_to(int pattern, int from, int to) {
  switch (pattern) {
    case 0:
      return 4;
    case 1:
      return from + 2 * to;
    case 2:
      return from < to ? 6 : 0;
    case 3:
      return to == 0 ? from + 1 : 0;
    default:
      return 0;
  }
}

TEST_CASE("all_to_all_rows and all_to_all_counts: each row to the rank that it is for") {
  const int size = world().size();
  const int rank = world().rank();
  for (int pattern = 0; pattern < 5; ++pattern) {
    for (int64_t dim : kDims) {
      CAPTURE(pattern, dim);
      Counts send_rows(size), recv_rows(size), counts(size, -1);
      for (int r = 0; r < size; ++r) {
        send_rows[r] = rows_from_to(pattern, rank, r);
        recv_rows[r] = rows_from_to(pattern, r, rank);
      }
      Sent sent_counts;
      world().comm->all_to_all_counts(send_rows, counts);
      REQUIRE(counts == recv_rows);
      CHECK(sent_counts.bytes() == (size - 1) * 8);

      std::vector<float> send, expected;
      for (int r = 0; r < size; ++r) {
        for (int64_t i = 0; i < send_rows[r] * dim; ++i) {
          send.push_back(exact_value(rank * size + r, i));
        }
        for (int64_t i = 0; i < recv_rows[r] * dim; ++i) {
          expected.push_back(exact_value(r * size + rank, i));
        }
      }
      const OnDevice<float> from(send, {sum_of(send_rows), dim}), recv({sum_of(recv_rows), dim});
      Sent sent;
      world().comm->all_to_all_rows(from, send_rows, recv, recv_rows);
      REQUIRE(recv.host() == expected);
      CHECK(sent.bytes() == (sum_of(send_rows) - send_rows[rank]) * dim * 4);
    }
  }
}

TEST_CASE("gather_rows_to_root: rank 0 gets all elements") {
  const int size = world().size();
  const int rank = world().rank();
  for (const Counts& columns : row_counts(size)) {
    for (int64_t tokens : {0, 1, 5}) {
      CAPTURE(columns, tokens);
      Counts elements = columns;
      for (int64_t& count : elements) count *= tokens;
      std::vector<float> local(elements[rank]), expected;
      for (size_t i = 0; i < local.size(); ++i) local[i] = exact_value(rank, i);
      for (int r = 0; r < size && rank == 0; ++r) {
        for (int64_t i = 0; i < elements[r]; ++i) expected.push_back(exact_value(r, i));
      }
      const OnDevice<float> from(local, {tokens, columns[rank]});
      const OnDevice<float> out({rank == 0 ? sum_of(elements) : 0});
      Sent sent;
      world().comm->gather_rows_to_root(from, elements, rank == 0 ? out.tensor() : Tensor());
      REQUIRE(out.host() == expected);
      CHECK(sent.bytes() == (rank == 0 ? 0 : elements[rank] * 4));
    }
  }
}

TEST_CASE("many small verbs in a row keep their order") {
  const int size = world().size();
  for (int i = 0; i < 200; ++i) {
    const OnDevice<float> x({static_cast<float>(i), 1.0f}, {2});
    world().comm->all_reduce_sum(x);
    REQUIRE(x.host() ==
            std::vector<float>{static_cast<float>(i * size), static_cast<float>(size)});
  }
}

TEST_CASE("row counts that do not fit the tensors are a bug, found before anything is sent") {
  const OnDevice<float> x({2, 2}), out({2, 2});
  const Counts rows(world().size(), 3);
  Sent sent;
  CHECK_THROWS_AS(world().comm->all_gather_rows(x, rows, out), Bug);
  CHECK(sent.bytes() == 0);
}

TEST_CASE("a peer that does not come is a DeviceFault") {
  if (world().size() == 1) return;  // nobody to wait for
  const auto comm = world().make_comm(std::chrono::seconds(1));
  const OnDevice<float> x({1000});
  const auto sum = [&] {
    comm->all_reduce_sum(x);
    world().device->synchronize();
  };
  if (world().rank() == 0) CHECK_THROWS_AS(sum(), DeviceFault);
  world().group->barrier();
}

}  // namespace
}  // namespace shoal::test
