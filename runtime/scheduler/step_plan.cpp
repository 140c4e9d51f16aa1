#include "runtime/scheduler/step_plan.h"

#include <cstring>
#include <type_traits>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// All ranks run the same binary on one kind of machine, so values travel in memory order.
constexpr uint32_t kMagic = 0x334E4C50;  // "PLN3"
constexpr uint8_t kAhead = 1, kReport = 2;  // of a plan
constexpr uint8_t kAbsorbed = 1, kSample = 2, kAllLogits = 4;
// request, dp_rank, first_position, from_sample, flags, two counts.
constexpr size_t kSliceHeader = 8 + 4 + 4 + 4 + 1 + 4 + 4;
constexpr size_t kCopyBytes = 4 + 4 + 4 + 1;
constexpr size_t kFileBytes = 1 + 4 + 4 + 8 + 32;

class Writer {
 public:
  template <typename T>
  void put(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    put_bytes(&value, sizeof(T));
  }
  void put_all(const std::vector<int32_t>& values) {
    put_bytes(values.data(), values.size() * sizeof(int32_t));
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  void put_bytes(const void* data, size_t size) {
    const auto* begin = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), begin, begin + size);
  }
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  size_t remaining() const { return bytes_.size(); }
  template <typename T>
  T get() {
    T value;
    get_bytes(&value, sizeof(T));
    return value;
  }
  std::vector<int32_t> get_all(uint32_t count) {
    SHOAL_CHECK(count <= remaining() / sizeof(int32_t), "{} values in {} bytes", count,
                remaining());
    std::vector<int32_t> values(count);
    get_bytes(values.data(), values.size() * sizeof(int32_t));
    return values;
  }

 private:
  void get_bytes(void* out, size_t size) {
    SHOAL_CHECK(size <= remaining(), "{} bytes wanted, {} left", size, remaining());
    if (size > 0) std::memcpy(out, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
  }
  std::span<const std::byte> bytes_;
};

}  // namespace

std::vector<std::byte> StepPlan::serialize() const {
  Writer out;
  out.put(kMagic);
  out.put(number);
  out.put(static_cast<uint8_t>(kind));
  out.put(static_cast<uint8_t>(exchange));
  out.put(static_cast<uint8_t>((ahead ? kAhead : 0) | (report ? kReport : 0)));
  out.put(ask);
  out.put(static_cast<uint32_t>(copies.size()));
  for (const PageCopy& c : copies) {
    out.put(c.dp_rank);
    out.put(c.page);
    out.put(c.slot);
    out.put(static_cast<uint8_t>(c.to_host ? 1 : 0));
  }
  out.put(static_cast<uint32_t>(files.size()));
  for (const PageFile& f : files) {
    out.put(static_cast<uint8_t>(f.kind));
    out.put(f.dp_rank);
    out.put(f.slot);
    out.put(f.ticket);
    out.put(f.key);
  }
  out.put(static_cast<uint32_t>(slices.size()));
  for (const SequenceSlice& s : slices) {
    out.put(s.request);
    out.put(s.dp_rank);
    out.put(s.first_position);
    out.put(s.from_sample);
    out.put(static_cast<uint8_t>((s.absorbed ? kAbsorbed : 0) | (s.sample ? kSample : 0) |
                                 (s.all_logits ? kAllLogits : 0)));
    out.put(static_cast<uint32_t>(s.tokens.size()));
    out.put(static_cast<uint32_t>(s.pages.size()));
    out.put_all(s.tokens);
    out.put_all(s.pages);
  }
  return out.take();
}

namespace {

void read_pages(Reader& in, StepPlan& plan) {
  plan.ask = in.get<uint64_t>();
  const auto num_copies = in.get<uint32_t>();
  SHOAL_CHECK(num_copies <= in.remaining() / kCopyBytes, "{} copies in {} bytes", num_copies,
              in.remaining());
  plan.copies.resize(num_copies);
  for (PageCopy& c : plan.copies) {
    c.dp_rank = in.get<int32_t>();
    c.page = in.get<int32_t>();
    c.slot = in.get<int32_t>();
    const auto to_host = in.get<uint8_t>();
    SHOAL_CHECK(c.dp_rank >= 0 && c.page >= 0 && c.slot >= 0 && to_host <= 1, "page {} slot {}",
                c.page, c.slot);
    c.to_host = to_host == 1;
  }
  const auto num_files = in.get<uint32_t>();
  SHOAL_CHECK(num_files <= in.remaining() / kFileBytes, "{} files in {} bytes", num_files,
              in.remaining());
  plan.files.resize(num_files);
  for (PageFile& f : plan.files) {
    const auto kind = in.get<uint8_t>();
    SHOAL_CHECK(kind <= static_cast<uint8_t>(PageFile::Kind::kDrop), "kind {} of file", kind);
    f.kind = static_cast<PageFile::Kind>(kind);
    f.dp_rank = in.get<int32_t>();
    f.slot = in.get<int32_t>();
    SHOAL_CHECK(f.dp_rank >= 0 && f.slot >= 0, "dp_rank {}, slot {}", f.dp_rank, f.slot);
    f.ticket = in.get<uint64_t>();
    f.key = in.get<PageKey>();
  }
}

}  // namespace

StepPlan StepPlan::deserialize(std::span<const std::byte> bytes) {
  Reader in(bytes);
  StepPlan plan;
  SHOAL_CHECK(in.get<uint32_t>() == kMagic, "not a step plan");
  plan.number = in.get<uint64_t>();
  const auto kind = in.get<uint8_t>();
  SHOAL_CHECK(kind <= static_cast<uint8_t>(StepKind::kPages), "kind {}", kind);
  plan.kind = static_cast<StepKind>(kind);
  const auto exchange = in.get<uint8_t>();
  SHOAL_CHECK(exchange <= static_cast<uint8_t>(ExpertExchange::kAllToAll), "exchange {}", exchange);
  plan.exchange = static_cast<ExpertExchange>(exchange);
  const auto flags = in.get<uint8_t>();
  SHOAL_CHECK(flags <= (kAhead | kReport), "flags {} of the plan", flags);
  plan.ahead = (flags & kAhead) != 0;
  plan.report = (flags & kReport) != 0;
  read_pages(in, plan);
  const auto num_slices = in.get<uint32_t>();
  SHOAL_CHECK(num_slices <= in.remaining() / kSliceHeader, "{} slices in {} bytes", num_slices,
              in.remaining());
  plan.slices.resize(num_slices);
  for (SequenceSlice& s : plan.slices) {
    s.request = in.get<RequestId>();
    s.dp_rank = in.get<int32_t>();
    s.first_position = in.get<int32_t>();
    SHOAL_CHECK(s.dp_rank >= 0 && s.first_position >= 0, "dp_rank {}, first_position {}", s.dp_rank,
                s.first_position);
    s.from_sample = in.get<int32_t>();
    SHOAL_CHECK(s.from_sample >= -1, "from_sample {}", s.from_sample);
    const auto flags = in.get<uint8_t>();
    SHOAL_CHECK(flags <= (kAbsorbed | kSample | kAllLogits), "flags {}", flags);
    s.absorbed = (flags & kAbsorbed) != 0;
    s.sample = (flags & kSample) != 0;
    s.all_logits = (flags & kAllLogits) != 0;
    const auto num_tokens = in.get<uint32_t>();
    const auto num_pages = in.get<uint32_t>();
    SHOAL_CHECK(num_tokens > 0 && (s.from_sample < 0 || num_tokens == 1),
                "{} tokens, from_sample {}", num_tokens, s.from_sample);
    s.tokens = in.get_all(num_tokens);
    s.pages = in.get_all(num_pages);
  }
  SHOAL_CHECK(in.remaining() == 0, "{} bytes after the plan", in.remaining());
  return plan;
}

}  // namespace shoal
