#include "parallel/self/self_group.h"

namespace shoal {

void SelfProcessGroup::broadcast(std::vector<std::byte>& message) {
  SHOAL_CHECK(message.size() <= kMaxControlMessageBytes, "a message of {} bytes", message.size());
}

std::vector<std::vector<std::byte>> SelfProcessGroup::gather(std::span<const std::byte> message) {
  SHOAL_CHECK(message.size() <= kMaxControlMessageBytes, "a message of {} bytes", message.size());
  return {std::vector<std::byte>(message.begin(), message.end())};
}

void SelfProcessGroup::abort(const std::string& reason) { throw DeviceFault(reason); }

void SelfCollectives::copy(const Tensor& from, const Tensor& to) {
  SHOAL_CHECK(from.contiguous() && to.contiguous() && from.num_bytes() == to.num_bytes(),
              "{} to {}", from.shape_string(), to.shape_string());
  if (from.data == to.data || from.num_bytes() == 0) return;
  device_.copy_on_device(to.data, from.data, from.num_bytes());
}

void SelfCollectives::all_gather_rows(const Tensor& local, std::span<const int64_t> rows,
                                      const Tensor& out) {
  SHOAL_CHECK(rows.size() == 1 && rows[0] == local.dim(0));
  copy(local, out);
}

void SelfCollectives::reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                                          const Tensor& out) {
  SHOAL_CHECK(rows.size() == 1 && rows[0] == x.dim(0));
  copy(x, out);
}

void SelfCollectives::all_to_all_rows(const Tensor& send, std::span<const int64_t> send_rows,
                                      const Tensor& recv, std::span<const int64_t> recv_rows) {
  SHOAL_CHECK(send_rows.size() == 1 && recv_rows.size() == 1 && send_rows[0] == send.dim(0) &&
              recv_rows[0] == recv.dim(0));
  copy(send, recv);
}

void SelfCollectives::all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) {
  SHOAL_CHECK(send.size() == 1 && recv.size() == 1);
  recv[0] = send[0];
}

void SelfCollectives::gather_rows_to_root(const Tensor& local, std::span<const int64_t> elements,
                                          const Tensor& out) {
  SHOAL_CHECK(elements.size() == 1 && elements[0] == local.num_elements());
  copy(local, out);
}

}  // namespace shoal
