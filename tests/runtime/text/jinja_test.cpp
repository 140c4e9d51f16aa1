// Small templates against what Jinja2 makes of them; data/jinja.json is written by
// generate_jinja.py.
#include "runtime/text/jinja.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <string>

#include "kernels/base/error.h"

namespace shoal::jinja {
namespace {

nlohmann::ordered_json read_json(const std::string& path) {
  std::ifstream file(SHOAL_SOURCE_DIR "/" + path);
  REQUIRE(file);
  return nlohmann::ordered_json::parse(file);
}

std::string render(const std::string& source, const Variables& variables = {}) {
  return Template(source).render(variables, 0);
}

TEST_CASE("Templates render as with Jinja2, or are refused as with Jinja2") {
  const auto golden = read_json("tests/runtime/text/data/jinja.json");
  Variables variables;
  for (const auto& [name, value] : golden["variables"].items()) variables.emplace_back(name, value);
  REQUIRE(golden["cases"].size() > 400);
  for (const auto& item : golden["cases"]) {
    const std::string source = item["template"];
    INFO(source);
    if (item.contains("expected")) {
      CHECK(render(source, variables) == item["expected"].get<std::string>());
    } else {
      CHECK_THROWS_AS(render(source, variables), InvalidInput);
    }
  }
}

TEST_CASE("Errors name the line and what is wrong") {
  CHECK_THROWS_WITH(render("a\nb\n{{ missing.x }}"), "line 3: 'missing' is undefined");
  CHECK_THROWS_WITH(render("\n{{ raise_exception('only user and assistant') }}"),
                    "line 2: only user and assistant");
  CHECK_THROWS_WITH(render("{% for x in [1] %}\n{{ x | wordwrap }}\n{% endfor %}"),
                    "line 2: the filter 'wordwrap' is not supported");
  CHECK_THROWS_WITH(render("{{ 1 is prime }}"), "line 1: the test 'prime' is not supported");
  CHECK_THROWS_WITH(render("\n\n{% include 'x' %}"), "line 3: the tag 'include' is not supported");
  CHECK_THROWS_WITH(render("{% for x in y recursive %}{% endfor %}"),
                    Catch::Contains("recursive loop is not supported"));
  CHECK_THROWS_WITH(render("\n{% if x %}\n\n"), Catch::Contains("endif"));
  CHECK_THROWS_WITH(render("{{ 1 +\n }}"), Catch::Contains("line 2"));
  CHECK_THROWS_WITH(render("\xFF"), Catch::Contains("UTF-8"));
  CHECK_THROWS_WITH(render("{{ x }}", {{"x", 18446744073709551615u}}), Catch::Contains("64 bits"));
}

TEST_CASE("strftime_now formats the given time") {
  CHECK(Template("{{ strftime_now('%Y') }}").render({}, 1'000'000'000) == "2001");
  CHECK(Template("{{ strftime_now('') }}").render({}, 0).empty());
  CHECK_THROWS_AS(Template("{{ strftime_now('%c' * 10000) }}").render({}, 0), InvalidInput);
}

TEST_CASE("A parsed template can be rendered again and again") {
  const Template counter("{% set ns = namespace(n=n) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}");
  CHECK(counter.render({{"n", 1}}, 0) == "2");
  CHECK(counter.render({{"n", 5}}, 0) == "6");
}

}  // namespace
}  // namespace shoal::jinja
