// Stop strings over streamed text. Text that may be the beginning of a stop string is held back
// until the next text decides. What is found does not depend on how the text was cut into deltas:
// the stop string that is complete first wins, the longest of those that end at the same place. One
// per sequence; not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

class StopMatcher {
 public:
  struct Result {
    std::string text;                  // may be shown now
    std::optional<size_t> stop_index;  // the stop string that was found, by its place in the list
  };

  // Throws InvalidInput for an empty stop string. With `include_stop`, the text that is shown ends
  // with the stop string, otherwise before it.
  StopMatcher(std::vector<std::string> stops, bool include_stop);

  // After a stop was found everything else is dropped.
  Result push(std::string_view delta);
  // The end without a stop: what was held back.
  std::string flush();
  bool stopped() const { return stopped_; }

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // [length + 1], Knuth-Morris-Pratt: longest border of each prefix
    size_t matched = 0;          // how much of it the text so far ends with
  };

  std::vector<Stop> stops_;
  bool include_stop_;
  bool stopped_ = false;
  std::string held_;
};

}  // namespace shoal
