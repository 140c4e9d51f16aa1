#include "runtime/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"

namespace shoal {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : include_stop_(include_stop) {
  for (std::string& text : stops) {
    if (text.empty()) throw_invalid("stop[{}] is empty", stops_.size());
    Stop stop;
    stop.border.assign(text.size() + 1, 0);
    for (size_t i = 1, k = 0; i < text.size(); ++i) {
      while (k > 0 && text[i] != text[k]) k = stop.border[k];
      if (text[i] == text[k]) ++k;
      stop.border[i + 1] = k;
    }
    stop.text = std::move(text);
    stops_.push_back(std::move(stop));
  }
}

StopMatcher::Result StopMatcher::push(std::string_view delta) {
  Result result;
  if (stopped_) return result;
  for (const char c : delta) {
    held_ += c;
    const Stop* found = nullptr;
    for (Stop& stop : stops_) {
      while (stop.matched > 0 && stop.text[stop.matched] != c) {
        stop.matched = stop.border[stop.matched];
      }
      if (stop.text[stop.matched] == c) ++stop.matched;
      if (stop.matched == stop.text.size() &&
          (found == nullptr || stop.text.size() > found->text.size())) {
        found = &stop;
      }
    }
    if (found != nullptr) {
      stopped_ = true;
      result.stop_index = static_cast<size_t>(found - stops_.data());
      if (!include_stop_) held_.resize(held_.size() - found->text.size());
      result.text = std::move(held_);
      held_.clear();
      return result;
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  result.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMatcher::flush() {
  for (Stop& stop : stops_) stop.matched = 0;
  return std::exchange(held_, {});
}

}  // namespace shoal
