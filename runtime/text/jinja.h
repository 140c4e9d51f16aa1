// The template language of Hugging Face chat templates: the subset of Jinja2 that they use, with
// the settings that transformers gives it (trim_blocks, lstrip_blocks, loop controls, generation
// blocks, its own tojson). No Python object can be reached, no value changed, nothing imported; a
// render is bounded in steps, text and recursion.
//
// Left out, and refused by name when it is reached: include, import, extends, block, recursive
// loops, autoescaping and the filters about it, and the filters that format pages (wordwrap,
// urlize, ...).
#pragma once

#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/text/jinja/ast.h"
#include "runtime/text/jinja/interpreter.h"

namespace shoal::jinja {

using Variables = std::vector<std::pair<std::string, nlohmann::ordered_json>>;

// Immutable; render from any number of threads.
class Template {
 public:
  // Throws InvalidInput with the line for a template that is malformed or too large.
  explicit Template(std::string_view source);

  // `now` is what strftime_now formats, in local time. Throws InvalidInput with the line if the
  // template raises, does something undefined, or exceeds a limit.
  std::string render(const Variables& variables, std::time_t now,
                     const RenderLimits& limits = {}) const;

 private:
  std::shared_ptr<const Block> block_;
};

}  // namespace shoal::jinja
