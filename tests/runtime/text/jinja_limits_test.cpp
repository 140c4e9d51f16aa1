// Hostile templates: each ends with an error within the limits, none takes the process with it.
#include <catch2/catch.hpp>
#include <string>

#include "kernels/base/error.h"
#include "runtime/text/jinja.h"

namespace shoal::jinja {
namespace {

std::string repeat(const std::string& text, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += text;
  return out;
}

void refused(const std::string& source, const std::string& named) {
  INFO(source.substr(0, 200));
  CHECK_THROWS_WITH(Template(source).render({}, 0), Catch::Contains(named));
  CHECK_THROWS_AS(Template(source).render({}, 0), InvalidInput);
}

TEST_CASE("Steps are bounded") {
  const std::string loop = "{% for a in range(100000) %}";
  const std::string end = "{% endfor %}";
  refused(repeat(loop, 2) + end + end, "steps");  // 10^10 rounds
  refused(repeat(loop, 2) + "{% continue %}" + end + end, "steps");
  refused("{% set s = 'a' * 30000000 %}" + loop + "{% if 'b' in s %}{% endif %}" + end, "steps");
  refused("{% set s = 'a' * 30000000 %}" + loop + "{{ s == s ~ '' }}" + end, "steps");
  refused("{% set s = 'a' * 1000000 %}{{ ('a' * 10000000).find(s ~ 'b') }}", "steps");
  refused(
      "{% macro m(n) %}{{ m(n) if n > 100 }}{{ m(n + 1) if n < 60 }}{{ m(n + 1) if n < 60 }}"
      "{% endmacro %}{{ m(0) }}",
      "steps");
}

TEST_CASE("Text and lists are bounded") {
  refused("{{ 'a' * 1000000000000 }}", "bytes of text");
  refused("{% for i in range(100000) %}{{ 'a' * 10000 }}{% endfor %}", "bytes of text");
  refused("{{ ('a' * 1000000).replace('', 'b' * 1000000) }}", "bytes of text");
  refused("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", "bytes of text");
  refused("{{ (['a' * 1000000] * 100) | join }}", "bytes of text");
  refused("{{ (['a' * 1000000] * 1000) | string }}", "too large");
  refused("{{ [0] * 1000000000 }}", "items");
  refused("{{ ('a' * 10000000) | list }}", "steps");
  refused("{{ range(1000000) }}", "range");
  refused("{{ range(-9223372036854775807, 9223372036854775807) }}", "range");
  refused("{{ '%1000000000d' % 1 }}", "width");
  refused("{{ ('x\n' * 100000) | indent(1000) }}", "bytes of text");
  refused(
      "{% set ns = namespace(s='a' * 1000) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}"
      "{% endfor %}",
      "bytes");
}

TEST_CASE("Nesting is bounded") {
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper");
  refused("{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}", "nested deeper");
  refused("{{ " + repeat("[", 100000) + "1" + repeat("]", 100000) + " }}", "nested deeper");
  refused("{{ " + repeat("-", 100000) + "1 }}", "nested deeper");
  refused("{{ " + repeat("not ", 100000) + "1 }}", "nested deeper");
  refused("{{ 1" + repeat(" + 1", 100000) + " }}", "levels");
  refused("{{ x" + repeat(".a", 100000) + " }}", "levels");
  refused("{{ 1" + repeat(" | abs", 100000) + " }}", "levels");
  refused("{{ 1 if 1" + repeat(" else 1 if 1", 50000) + " }}", "nested deeper");
  refused(repeat("{% if 1 %}", 100000), "nested deeper");
  refused("{% for " + repeat("(", 100000) + "a" + repeat(")", 100000) + " in b %}{% endfor %}",
          "nested deeper");
  // A list that grows around itself; doubled, it is small in memory and endless to walk.
  refused(
      "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor "
      "%}",
      "nested deeper");
  refused(
      "{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% "
      "endfor %}",
      "too large");
}

TEST_CASE("Values that refer to each other do not keep each other alive or loop") {
  CHECK(Template("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns.self.self is defined }}")
            .render({}, 0) == "True");
  refused("{% set ns = namespace() %}{% set ns.self = [ns] %}{{ ns.self }}", "cannot be printed");
  refused("{% set ns = namespace() %}{{ ns | tojson }}", "cannot be written");
  refused(
      "{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}{% endmacro %}"
      "{% set ns.m = m %}{% endfor %}{{ ns.m() }}",
      "outside the block");
  CHECK(Template("{% set ns = namespace(n=none) %}{% for i in range(100000) %}"
                 "{% set ns.n = namespace(next=ns.n) %}{% endfor %}ok")
            .render({}, 0) == "ok");
  CHECK(Template("{% set ns = namespace() %}{% for i in [1] %}{% set ns.l = loop %}{% endfor %}"
                 "{{ ns.l.index0 }}")
            .render({}, 0) == "0");
}

TEST_CASE("Arithmetic does not overflow") {
  refused("{{ 9223372036854775807 + 1 }}", "64 bits");
  refused("{{ -9223372036854775807 - 2 }}", "64 bits");
  refused("{{ (-9223372036854775807 - 1) // -1 }}", "64 bits");
  refused("{{ -(-9223372036854775807 - 1) }}", "64 bits");
  refused("{{ (-9223372036854775807 - 1) | abs }}", "64 bits");
  refused("{{ 10 ** 30 }}", "64 bits");
  refused("{{ 99999999999999999999 }}", "64 bits");
  refused("{{ '99999999999999999999' | int }}", "64 bits");
  CHECK(Template("{{ (-9223372036854775807 - 1) % -1 }}").render({}, 0) == "0");
  CHECK(Template("{{ 'abc'[-9223372036854775807:9223372036854775807:9223372036854775807] }}")
            .render({}, 0) == "a");
  CHECK(Template("{{ 'abc'[::-9223372036854775807] }}").render({}, 0) == "c");
}

TEST_CASE("Large templates are refused, long conversations are not") {
  CHECK_THROWS_AS(Template(std::string(2'000'000, 'x')), InvalidInput);
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  for (int i = 0; i < 2000; ++i) {
    messages.push_back({{"role", "user"}, {"content", std::string(5000, 'x') + "</think>\n"}});
  }
  const Template chat(
      "{% for m in messages %}{{ '<|' + m.role + '|>' + "
      "m.content.split('</think>')[-1].lstrip('\\n') + m.content | trim }}{% endfor %}");
  CHECK(chat.render({{"messages", messages}}, 0).size() > 10'000'000);
}

}  // namespace
}  // namespace shoal::jinja
