#include "runtime/offload/offloaded_experts.h"

#include <algorithm>
#include <numeric>

namespace shoal {
namespace {

// Half of a use's heat is gone after 44 steps: long enough to tell an expert that every tenth step
// needs from one that every fiftieth does, short enough to follow a change of subject.
constexpr float kKeep = 1 - 1.0f / 64;
// Changing places copies two experts; so many uses more have to be expected of the hotter one,
// within the time that heat lasts, that it pays and that two alike do not take turns.
constexpr float kWorthMoving = 4;

}  // namespace

OffloadedExperts::OffloadedExperts(ExpertStore& store, std::string name, const ExpertImage& image,
                                   const ExpertCounts& counts)
    : store_(store),
      name_(std::move(name)),
      image_(image),
      min_stream_rows_(
          stream_min_rows(image.bytes(), 3 * store.config_.hidden * store.config_.inner,
                          store.config_.link_gigabytes_per_s, store.config_.cpu_threads)),
      experts_(counts.total()) {
  rows_.resize(counts.total());
  const uint64_t bytes = image_.bytes();
  if (counts.device > 0) device_memory_ = store_.device_.allocate(counts.device * bytes);
  if (counts.host > 0) {
    const uint64_t spare = counts.device + counts.disk > 0 ? 1 : 0;
    host_memory_ =
        store_.device_.allocate_host((counts.host + spare) * bytes + ExpertImage::kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(host_memory_.data());
    skew_ = (ExpertImage::kAlignment - address % ExpertImage::kAlignment) % ExpertImage::kAlignment;
    spare_ = counts.host * bytes;
  }
  for (int64_t slot = 0; slot < counts.device; ++slot) {
    for (int part = 0; part < ExpertImage::kParts; ++part) {
      device_weights_[part].push_back(image_.weight(part, device_slot(slot)));
    }
  }
  for (int64_t e = 0; e < counts.total(); ++e) {
    Expert& expert = experts_[e];
    if (e < counts.device) {
      expert = {ExpertHome::kDevice, static_cast<uint64_t>(e)};
      for (int part = 0; part < ExpertImage::kParts; ++part) {
        store_.source_.read_to(
            fmt::format("{}.experts.{}.{}", name_, store_.config_.experts.begin + e,
                        ExpertImage::kNames[part]),
            store_.device_, device_weights_[part][e]);
      }
    } else if (e < counts.device + counts.host) {
      expert = {ExpertHome::kHost, (e - counts.device) * bytes};
      read_expert(e, host_at(expert.at));
    }
  }
  if (counts.host + counts.disk == 0) return;
  for (size_t i = 0; i < streamed_weights_.size(); ++i) {
    auto* memory = static_cast<std::byte*>(store_.slots_[i].memory.data());
    for (int part = 0; part < ExpertImage::kParts; ++part) {
      streamed_weights_[i][part] = {image_.weight(part, memory)};
    }
  }
}

OffloadedExperts::~OffloadedExperts() {
  // Copies may still be on their way from and to the memory that ends here; not on a device that
  // failed.
  try {
    for (const auto& event : {moved_, copied_}) {
      if (event) event->wait();
    }
  } catch (const DeviceFault&) {
  }
}

void OffloadedExperts::read_expert(int64_t expert, std::byte* image) {
  for (int part = 0; part < ExpertImage::kParts; ++part) {
    store_.source_.read_to(
        fmt::format("{}.experts.{}.{}", name_, store_.config_.experts.begin + expert,
                    ExpertImage::kNames[part]),
        store_.host_, image_.weight(part, image));
  }
}

// A file that was sound while loading and is not now is this machine's failure, not the user's: the
// ranks start again, and say then what is wrong with it.
void OffloadedExperts::read_again(int64_t expert, std::byte* image) {
  try {
    read_expert(expert, image);
  } catch (const InvalidInput& error) {
    throw DeviceFault(fmt::format("reading an expert again: {}", error.what()));
  }
  store_.stats_.bytes_from_disk += image_.weight_bytes();
}

OffloadedExperts::Arrangement OffloadedExperts::arrange(const std::vector<int32_t>& ids,
                                                        int64_t top_k) {
  const auto count = static_cast<int64_t>(experts_.size());
  const auto pairs = static_cast<int64_t>(ids.size());
  const auto slots = static_cast<int64_t>(device_weights_[0].size());
  const int64_t first = store_.config_.experts.begin;
  const auto local = [&](int32_t id) {
    return id >= first && id - first < count ? id - first : -1;
  };
  std::vector<int64_t> rows(count, 0);  // of each expert
  for (const int32_t id : ids) {
    if (const int64_t e = local(id); e >= 0) ++rows[e];
  }
  Arrangement result;
  std::vector<int64_t> of_slot(slots, -1);
  for (int64_t e = 0; e < count; ++e) {
    Expert& expert = experts_[e];
    rows_[e] += static_cast<uint64_t>(rows[e]);
    if (rows[e] > 0) expert.heat += 1;
    if (expert.home == ExpertHome::kDevice) {
      of_slot[expert.at] = e;
    } else if (rows[e] > 0) {
      const OffloadMode mode = store_.config_.mode;
      const bool stream = mode == OffloadMode::kStream ||
                          (mode == OffloadMode::kAuto && rows[e] >= min_stream_rows_);
      (stream ? result.streamed : result.on_cpu).push_back({e, 0, rows[e]});
    }
  }
  // Source rows of all rows, slots of all pairs, the slots' offsets, then 0 and its rows of each
  // expert that is streamed.
  result.numbers.resize(2 * pairs + slots + 1 + 2 * result.streamed.size());
  int32_t* offsets = result.numbers.data() + 2 * pairs;
  std::vector<int64_t> next(count, 0);  // row of each expert
  int64_t row = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t e = of_slot[slot];
    offsets[slot] = static_cast<int32_t>(row);
    next[e] = row;
    row += rows[e];
  }
  offsets[slots] = static_cast<int32_t>(row);
  result.on_device = row;
  int32_t* pair_of = offsets + slots + 1;
  for (std::vector<Guest>* guests : {&result.streamed, &result.on_cpu}) {
    for (Guest& guest : *guests) {
      next[guest.expert] = guest.begin = row;
      row += guest.end;
      if (guests == &result.streamed) {
        *pair_of++ = 0;
        *pair_of++ = static_cast<int32_t>(guest.end);
      }
      guest.end = row;
    }
  }
  result.rows = row;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t e = local(ids[i]);
    int32_t& slot = result.numbers[pairs + i];
    slot = -1;
    if (e < 0) continue;
    slot = static_cast<int32_t>(next[e]++);
    result.numbers[slot] = static_cast<int32_t>(i / top_k);
  }
  return result;
}

void OffloadedExperts::forward(ExecContext& ctx, const Tensor& x, const Tensor& expert_ids,
                               const Tensor& weights, const Tensor& out) {
  Workspace& ws = ctx.workspace;
  Device& device = store_.device_;
  const int64_t T = x.dim(0), top_k = expert_ids.dim(1), pairs = T * top_k;
  SHOAL_CHECK(x.contiguous() && expert_ids.contiguous(), "x {}, ids {}", x.shape_string(),
              expert_ids.shape_string());
  if (moved_) moved_->wait();
  moved_.reset();
  std::vector<int32_t> ids(pairs);
  device.copy_to_host(ids.data(), expert_ids.data, expert_ids.num_bytes());
  const Arrangement rows = arrange(ids, top_k);
  // The CPU's rows come over before the device has new work: it computes while the CPU does.
  std::vector<std::byte> host_x(rows.on_cpu.empty() ? 0 : x.num_bytes());
  if (!rows.on_cpu.empty()) device.copy_to_host(host_x.data(), x.data, x.num_bytes());

  const Tensor numbers =
      ws.from_host(DType::kI32, rows.numbers.data(), {static_cast<int64_t>(rows.numbers.size())});
  const auto some = [&](int64_t begin, int64_t end) { return numbers.slice(0, begin, end); };
  const auto slots = static_cast<int64_t>(device_weights_[0].size());
  const int64_t here = rows.on_cpu.empty() ? rows.rows : rows.on_cpu.front().begin;
  const Tensor sorted = ws.tensor(x.dtype, {rows.rows, x.dim(1)});
  ctx.ops.gather_rows(x, some(0, here), sorted.slice(0, 0, here));
  const Tensor gate = ws.tensor(x.dtype, {here, store_.config_.inner});
  const Tensor up = ws.tensor(x.dtype, {here, store_.config_.inner});
  if (rows.on_device > 0) {
    multiply_experts(ctx.ops, sorted.slice(0, 0, rows.on_device), device_weights_,
                     some(2 * pairs, 2 * pairs + slots + 1), gate.slice(0, 0, rows.on_device),
                     up.slice(0, 0, rows.on_device));
  }
  int64_t offsets = 2 * pairs + slots + 1;
  std::shared_ptr<DeviceEvent> begun = rows.streamed.empty() ? nullptr : device.record();
  for (const Guest& guest : rows.streamed) {
    const Expert& expert = experts_[guest.expert];
    ExpertStore::Place* place = nullptr;
    if (expert.home == ExpertHome::kDisk) {
      place = &store_.next_place();
      read_again(guest.expert, place->memory.data());
    }
    ExpertStore::Slot& slot = store_.next_slot();
    copied_ = device.beside(slot.free ? *slot.free : *begun, [&] {
      device.copy_to_device_async(slot.memory.data(), place ? place->memory : host_memory_,
                                  place ? 0 : skew_ + expert.at, image_.bytes());
    });
    if (place != nullptr) place->free = copied_;
    device.order_after(*copied_);
    multiply_experts(ctx.ops, sorted.slice(0, guest.begin, guest.end),
                     streamed_weights_[&slot - store_.slots_.data()], some(offsets, offsets + 2),
                     gate.slice(0, guest.begin, guest.end), up.slice(0, guest.begin, guest.end));
    slot.free = device.record();
    offsets += 2;
    store_.stats_.bytes_streamed += image_.weight_bytes();
    store_.stats_.rows_streamed += guest.end - guest.begin;
  }
  if (!rows.on_cpu.empty()) multiply_on_cpu(ctx, rows, host_x.data(), sorted);
  ctx.ops.combine(sorted, some(pairs, 2 * pairs).reshape({T, top_k}), weights, out);
}

void OffloadedExperts::multiply_on_cpu(ExecContext& ctx, const Arrangement& rows,
                                       const std::byte* x, const Tensor& sorted) {
  const int64_t hidden = sorted.dim(1), first = rows.on_cpu.front().begin;
  const int64_t count = rows.rows - first;
  host_x_.resize(count * hidden);
  host_gate_.resize(count * store_.config_.inner);
  host_up_.resize(count * store_.config_.inner);
  const bool bf16 = sorted.dtype == DType::kBF16;
  for (int64_t row = 0; row < count; ++row) {
    const int64_t from = rows.numbers[first + row] * hidden;
    float* to = host_x_.data() + row * hidden;
    if (bf16) {
      const auto* values = reinterpret_cast<const BF16*>(x) + from;
      for (int64_t i = 0; i < hidden; ++i) to[i] = to_float(values[i]);
    } else {
      const auto* values = reinterpret_cast<const float*>(x) + from;
      std::copy(values, values + hidden, to);
    }
  }
  // Those in host memory in one product, those of files one by one as they are read.
  std::vector<Guest> together;
  std::vector<std::byte*> images;
  const auto run_together = [&] {
    if (!together.empty()) run_on_host(together, first, images);
    together.clear();
    images.clear();
  };
  for (const Guest& guest : rows.on_cpu) {
    const Expert& expert = experts_[guest.expert];
    if (expert.home == ExpertHome::kHost) {
      together.push_back(guest);
      images.push_back(host_at(expert.at));
      continue;
    }
    run_together();
    std::byte* image = store_.next_place().memory.data();
    read_again(guest.expert, image);
    run_on_host({&guest, 1}, first, {&image, 1});
  }
  run_together();

  const Tensor to = sorted.slice(0, first, rows.rows);
  if (bf16) {
    std::vector<BF16> rounded(host_x_.size());
    std::transform(host_x_.begin(), host_x_.end(), rounded.begin(),
                   [](float v) { return to_bf16(v); });
    store_.device_.copy_to_device(to.data, rounded.data(), to.num_bytes());
  } else {
    store_.device_.copy_to_device(to.data, host_x_.data(), to.num_bytes());
  }
}

// REQUIRES: guests follow each other.
void OffloadedExperts::run_on_host(std::span<const Guest> guests, int64_t first_row,
                                   std::span<std::byte* const> images) {
  std::array<std::vector<Weight>, ExpertImage::kParts> weights;
  std::vector<int32_t> offsets{0};
  const int64_t begin = guests.front().begin, rows = guests.back().end - begin;
  for (size_t i = 0; i < guests.size(); ++i) {
    for (int part = 0; part < ExpertImage::kParts; ++part) {
      weights[part].push_back(image_.weight(part, images[i]));
    }
    offsets.push_back(static_cast<int32_t>(guests[i].end - begin));
    store_.stats_.bytes_read_by_cpu += image_.weight_bytes();
  }
  store_.stats_.rows_on_host += rows;
  const auto part_of = [&](std::vector<float>& values, int64_t width) {
    return Tensor(values.data() + (begin - first_row) * width, DType::kF32, {rows, width});
  };
  multiply_experts(store_.host_ops_, part_of(host_x_, store_.config_.hidden), weights,
                   Tensor(offsets.data(), DType::kI32, {std::ssize(offsets)}),
                   part_of(host_gate_, store_.config_.inner),
                   part_of(host_up_, store_.config_.inner));
}

void OffloadedExperts::age() {
  for (Expert& expert : experts_) expert.heat *= kKeep;
}

void OffloadedExperts::forget() {
  for (Expert& expert : experts_) expert.heat = 0;
}

uint64_t OffloadedExperts::move_one() {
  // One home up: of those that live on the device, and of those on the host, the coldest makes room
  // for the hottest that lives below.
  for (const ExpertHome home : {ExpertHome::kDevice, ExpertHome::kHost}) {
    Expert *cold = nullptr, *hot = nullptr;
    for (Expert& expert : experts_) {
      if (expert.home == home) {
        if (cold == nullptr || expert.heat < cold->heat) cold = &expert;
      } else if (expert.home > home) {
        if (hot == nullptr || expert.heat > hot->heat) hot = &expert;
      }
    }
    if (cold == nullptr || hot == nullptr || hot->heat < cold->heat + kWorthMoving) continue;
    if (moved_) moved_->wait();
    move_up(*hot, hot - experts_.data(), *cold);
    ++store_.stats_.moves;
    const bool both = hot->home == ExpertHome::kDevice && cold->home == ExpertHome::kHost;
    const uint64_t bytes = image_.bytes() * (both ? 2 : 1);
    store_.stats_.bytes_moved += bytes;
    return bytes;
  }
  return 0;
}

void OffloadedExperts::move_up(Expert& hot, int64_t hot_expert, Expert& cold) {
  Device& device = store_.device_;
  const uint64_t bytes = image_.bytes();
  if (cold.home == ExpertHome::kHost) {
    // The file's copy is as good as the one that is given up. What is still copied from the spare
    // place is a streamed expert's that lived there.
    if (copied_) copied_->wait();
    read_again(hot_expert, host_at(spare_));
    hot.home = ExpertHome::kHost;
    hot.at = std::exchange(spare_, cold.at);
    cold.home = ExpertHome::kDisk;
    return;
  }
  const uint64_t slot = cold.at;
  // Behind all that reads the slot in the steps so far.
  const std::unique_ptr<DeviceEvent> now = device.record();
  if (hot.home == ExpertHome::kDisk) {
    ExpertStore::Place& place = store_.next_place();
    read_again(hot_expert, place.memory.data());
    moved_ = device.beside(
        *now, [&] { device.copy_to_device_async(device_slot(slot), place.memory, 0, bytes); });
    place.free = moved_;
    cold.home = ExpertHome::kDisk;
  } else {
    moved_ = device.beside(*now, [&] {
      device.copy_to_host_async(host_memory_, skew_ + spare_, device_slot(slot), bytes);
      device.copy_to_device_async(device_slot(slot), host_memory_, skew_ + hot.at, bytes);
    });
    cold.home = ExpertHome::kHost;
    cold.at = std::exchange(spare_, hot.at);
  }
  hot.home = ExpertHome::kDevice;
  hot.at = slot;
}

}  // namespace shoal
