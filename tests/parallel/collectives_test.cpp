// Collectives as a table of verb x size x counts. Inputs are small integers made from (rank,
// index), so that every rank knows what the one right answer is, and exactly.
#include "parallel/collectives.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>

#include "parallel/shard.h"
#include "tests/parallel/support/values.h"
#include "tests/parallel/support/world.h"

#ifdef SHOAL_WITH_MPI
#include "parallel/mpi/mpi_collectives.h"
#endif

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
    Sent sent;
    world().comm->all_reduce_sum(view(x, {count}));
    REQUIRE(x == expected);
    int64_t bytes = 0;
    if (size > 1 && (size == 2 || count <= 4096)) {
      bytes = (size - 1) * count * 4;
    } else if (size > 1) {
      const int64_t own = split_evenly(count, size, 16)[world().rank()].size();
      bytes = (count - own + (size - 1) * own) * 4;
    }
    CHECK(sent.bytes() == bytes);
  }
}

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
    world().comm->all_reduce_sum(view(x, {count}));
    REQUIRE(std::memcmp(x.data(), expected.data(), count * sizeof(float)) == 0);
  }
}

TEST_CASE("all_reduce_sum takes any shape") {
  std::vector<float> x(2 * 3 * 4, static_cast<float>(world().rank() + 1));
  world().comm->all_reduce_sum(view(x, {2, 3, 4}));
  const int size = world().size();
  for (float value : x) REQUIRE(value == static_cast<float>(size * (size + 1) / 2));
}

TEST_CASE("all_gather_rows: everybody's rows in rank order") {
  const int size = world().size();
  for (const Counts& rows : row_counts(size)) {
    for (int64_t dim : kDims) {
      CAPTURE(rows, dim);
      std::vector<float> local(rows[world().rank()] * dim), out(sum_of(rows) * dim), expected;
      for (size_t i = 0; i < local.size(); ++i) local[i] = exact_value(world().rank(), i);
      for (int r = 0; r < size; ++r) {
        for (int64_t i = 0; i < rows[r] * dim; ++i) expected.push_back(exact_value(r, i));
      }
      Sent sent;
      world().comm->all_gather_rows(view(local, {rows[world().rank()], dim}), rows,
                                    view(out, {sum_of(rows), dim}));
      REQUIRE(out == expected);
      CHECK(sent.bytes() == (size - 1) * rows[world().rank()] * dim * 4);
    }
  }
}

TEST_CASE("all_gather_rows: I32") {
  const int size = world().size();
  std::vector<int32_t> local{world().rank(), -1}, out(2 * size), expected;
  for (int r = 0; r < size; ++r) expected.insert(expected.end(), {r, -1});
  world().comm->all_gather_rows(view(local, {2, 1}), Counts(size, 2), view(out, {2 * size, 1}));
  CHECK(out == expected);
}

TEST_CASE("reduce_scatter_rows: this rank's rows of the sum, in rank order") {
  const int size = world().size();
  const int rank = world().rank();
  for (const Counts& rows : row_counts(size)) {
    for (int64_t dim : kDims) {
      CAPTURE(rows, dim);
      const int64_t total = sum_of(rows);
      const int64_t first = std::accumulate(rows.begin(), rows.begin() + rank, int64_t{0}) * dim;
      std::vector<float> x(total * dim), out(rows[rank] * dim), expected(rows[rank] * dim);
      for (size_t i = 0; i < x.size(); ++i) x[i] = random_value(rank, i);
      for (size_t i = 0; i < out.size(); ++i) {
        expected[i] = random_value(0, first + i);
        for (int r = 1; r < size; ++r) expected[i] += random_value(r, first + i);
      }
      const std::vector<float> before = x;
      Sent sent;
      world().comm->reduce_scatter_rows(view(x, {total, dim}), rows, view(out, {rows[rank], dim}));
      REQUIRE(out == expected);
      REQUIRE(x == before);
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

      std::vector<float> send, recv(sum_of(recv_rows) * dim), expected;
      for (int r = 0; r < size; ++r) {
        for (int64_t i = 0; i < send_rows[r] * dim; ++i) {
          send.push_back(exact_value(rank * size + r, i));
        }
        for (int64_t i = 0; i < recv_rows[r] * dim; ++i) {
          expected.push_back(exact_value(r * size + rank, i));
        }
      }
      Sent sent;
      world().comm->all_to_all_rows(view(send, {sum_of(send_rows), dim}), send_rows,
                                    view(recv, {sum_of(recv_rows), dim}), recv_rows);
      REQUIRE(recv == expected);
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
      std::vector<float> local(elements[rank]), out(rank == 0 ? sum_of(elements) : 0), expected;
      for (size_t i = 0; i < local.size(); ++i) local[i] = exact_value(rank, i);
      for (int r = 0; r < size && rank == 0; ++r) {
        for (int64_t i = 0; i < elements[r]; ++i) expected.push_back(exact_value(r, i));
      }
      Sent sent;
      world().comm->gather_rows_to_root(view(local, {tokens, columns[rank]}), elements,
                                        rank == 0 ? view(out, {sum_of(elements)}) : Tensor());
      REQUIRE(out == expected);
      CHECK(sent.bytes() == (rank == 0 ? 0 : elements[rank] * 4));
    }
  }
}

TEST_CASE("many small verbs in a row keep their order") {
  const int size = world().size();
  for (int i = 0; i < 200; ++i) {
    std::vector<float> x{static_cast<float>(i), 1.0f};
    world().comm->all_reduce_sum(view(x, {2}));
    REQUIRE(x[0] == static_cast<float>(i * size));
    REQUIRE(x[1] == static_cast<float>(size));
  }
}

TEST_CASE("row counts that do not fit the tensors are a bug, found before anything is sent") {
  std::vector<float> x(4), out(4);
  const Counts rows(world().size(), 3);
  Sent sent;
  CHECK_THROWS_AS(world().comm->all_gather_rows(view(x, {2, 2}), rows, view(out, {2, 2})), Bug);
  CHECK(sent.bytes() == 0);
}

#ifdef SHOAL_WITH_MPI
TEST_CASE("a peer that does not come is a DeviceFault") {
  if (world().size() == 1) return;  // nobody to wait for
  MpiCollectives comm(*world().device, std::chrono::milliseconds(50));
  std::vector<float> x(1000, 1.0f);
  if (world().rank() == 0) {
    CHECK_THROWS_AS(comm.all_reduce_sum(view(x, {1000})), DeviceFault);
  }
  world().group->barrier();
}
#endif

}  // namespace
}  // namespace shoal::test
