#include "kernels/cuda/expert_tables.h"

namespace shoal {

const ExpertTables::Table& ExpertTables::get(std::span<const Weight> experts) {
  Table& table = tables_[{experts.data(), experts.size()}];
  bool same = table.host.size() == experts.size();
  for (size_t e = 0; same && e < experts.size(); ++e) {
    const Weight& w = experts[e];
    same = w.data.dtype == table.type && w.n() == table.n && w.k() == table.k &&
           table.host[e] == weight_view(w);
  }
  if (!same) fill(table, experts);
  return table;
}

void ExpertTables::fill(Table& table, std::span<const Weight> experts) {
  SHOAL_CHECK(!device_.capturing(), "experts that no step used before, while a graph is captured");
  SHOAL_CHECK(experts.size() <= kMaxGroups, "{} experts on one rank", experts.size());
  table.host.clear();
  table.type = experts[0].data.dtype;
  table.has_min = experts[0].min.defined();
  table.n = experts[0].n();
  table.k = experts[0].k();
  table.layout = {};
  for (const Weight& w : experts) {
    check_weight(w);
    SHOAL_CHECK(w.data.dtype == table.type && w.n() == table.n && w.k() == table.k &&
                    w.min.defined() == table.has_min,
                "experts {} and {}, min {} and {}", experts[0].data.shape_string(),
                w.data.shape_string(), table.has_min, w.min.defined());
    table.host.push_back(weight_view(w));
    table.layout.add(table.host.back());
  }
  const size_t bytes = table.host.size() * sizeof(WeightView);
  // The old memory may be in graphs: what it says must stay true for them, or become so.
  const MemoryScope scope(device_, MemoryUse::kScratch);
  if (table.memory.bytes() < bytes) table.memory = device_.allocate(bytes);
  device_.copy_to_device(table.memory.data(), table.host.data(), bytes);
}

}  // namespace shoal
