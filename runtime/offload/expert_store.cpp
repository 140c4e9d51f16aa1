#include "runtime/offload/expert_store.h"

#include "runtime/offload/offloaded_experts.h"

namespace shoal {
namespace {

// What moves in a step may be behind the copies of the next step's streamed experts: 2.5 ms on
// PCIe 4.0, a fraction of a step that has to stream at all. One move at least, however large the
// experts are.
constexpr uint64_t kMoveBytesPerStep = uint64_t{64} << 20;

}  // namespace

ExpertStore::ExpertStore(const OffloadConfig& config, CheckpointSource& source, Device& device,
                         Device& host, Ops& host_ops)
    : config_(config), source_(source), device_(device), host_(host), host_ops_(host_ops) {
  SHOAL_CHECK(config.counts.total() == config.layers * config.experts.size(),
              "{} + {} + {} experts", config.counts.device, config.counts.host, config.counts.disk);
  if (config.counts.host + config.counts.disk == 0) return;
  for (Slot& slot : slots_) slot.memory = device_.allocate(config.slot_bytes);
  if (config.counts.disk == 0) return;
  for (Place& place : places_) place.memory = device_.allocate_host(config.slot_bytes);
}

ExpertStore::~ExpertStore() = default;

std::unique_ptr<RoutedExperts> ExpertStore::load_layer(const std::string& name) {
  const auto form = [&](int64_t expert, int part) {
    const bool down = part == ExpertImage::kDown;
    return source_.held_form(
        fmt::format("{}.experts.{}.{}", name, expert, ExpertImage::kNames[part]),
        down ? config_.hidden : config_.inner, down ? config_.inner : config_.hidden);
  };
  std::array<WeightForm, ExpertImage::kParts> forms;
  for (int part = 0; part < ExpertImage::kParts; ++part) {
    forms[part] = form(config_.experts.begin, part);
    for (int64_t e = config_.experts.begin + 1; e < config_.experts.end; ++e) {
      if (form(e, part) == forms[part]) continue;
      throw_invalid("{}: the {} of experts {} and {} of {} are stored differently",
                    source_.checkpoint().path(), ExpertImage::kNames[part], config_.experts.begin,
                    e, name);
    }
  }
  const auto layer = static_cast<int64_t>(layers_.size());
  const ExpertImage image(forms, config_.hidden, config_.inner);
  const ExpertCounts counts = counts_of_layer(config_.counts, layer, config_.layers);
  SHOAL_CHECK(image.bytes() <= config_.slot_bytes, "{}: {} bytes an expert, planned {}", name,
              image.bytes(), config_.slot_bytes);
  auto experts = std::make_unique<OffloadedExperts>(*this, name, image, counts);
  layers_.push_back(experts.get());
  stats_.experts_on_device += counts.device;
  stats_.experts_on_host += counts.host;
  stats_.experts_on_disk += counts.disk;
  return experts;
}

ExpertStore::Slot& ExpertStore::next_slot() { return slots_[next_slot_ = 1 - next_slot_]; }

ExpertStore::Place& ExpertStore::next_place() {
  Place& place = places_[next_place_ = 1 - next_place_];
  if (place.free) place.free->wait();
  place.free.reset();
  return place;
}

void ExpertStore::end_step() {
  uint64_t moved = 0;
  for (OffloadedExperts* layer : layers_) layer->age();
  for (size_t i = 0; i < layers_.size() && moved < kMoveBytesPerStep; ++i) {
    moved += layers_[next_move_]->move_one();
    next_move_ = (next_move_ + 1) % layers_.size();
  }
}

void ExpertStore::restart() {
  for (OffloadedExperts* layer : layers_) layer->forget();
  stats_ = {.experts_on_device = stats_.experts_on_device,
            .experts_on_host = stats_.experts_on_host,
            .experts_on_disk = stats_.experts_on_disk};
}

}  // namespace shoal
