#!/usr/bin/env python3
"""Makes data/jinja.json: small templates, each with what Jinja2 renders under the settings of
transformers' chat templates (trim_blocks, lstrip_blocks, loop controls, its own tojson).

    python tests/runtime/text/generate_jinja.py            # needs jinja2 >= 3.1
"""
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {
    "name": "Ada",
    "text": "  Héllo wörld 日本  ",
    "empty": "",
    "number": 7,
    "negative": -3,
    "ratio": 2.5,
    "yes": True,
    "no": False,
    "nothing": None,
    "words": ["banana", "Apple", "cherry", "apple"],
    "numbers": [3, 1, 2, 10, -4],
    "none_list": [],
    "person": {"name": "Ada", "age": 36, "tags": ["a", "b"], "address": {"city": "Zürich"}},
    "people": [
        {"name": "Ada", "age": 36, "role": "user", "on": True},
        {"name": "bob", "age": 20, "role": "tool", "on": False},
        {"name": "Cleo", "age": 51, "role": "user", "on": True, "extra": None},
    ],
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi <b>\n there 'you' \"too\" \\ \t é 🙂"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
    ],
}

EXPRESSIONS = """
1 + 2 * 3|- 2 ** 3 ** 2|7 // 2|-7 // 2|7 % -3|-7 % 3|7 / 2|6 / 2|7.5 // 2|-7.5 % 2|1e3|1.5e-7|1e16|123456789.125
0.1 + 0.2|1 / 3|1e22|5.0|100.0 * 3|1_000|0x1F|0b101|0o17|10 - -3|- number|+ number|2 ** -1|true + 1
'a' + 'b'|'a' 'b'|'ab' * 3|3 * 'ab'|[1] + [2]|[1, 2] * 2|(1, 2) + (3,)|'a' ~ 1 ~ none ~ 2.0 ~ true|1 ~ undefined_name
1 < 2|1 < 2 < 3|3 > 2 > 2|1 == 1.0|true == 1|'a' < 'b'|'Z' < 'a'|[1, 2] < [1, 3]|'a' == 1|none == false|1 != 2|2 >= 2|2 <= 1
'a' in 'abc'|'x' not in 'abc'|1 in [1, 2]|'name' in person|'age' not in person|1 in (2, 3)|'' in 'abc'|'a' in undefined_name
yes and 1|no and 1|0 or 'x'|'' or none|not yes|not none_list|not (yes and no)|yes and not no or yes|1 if yes else 2|1 if no|1 if no else 2 if no else 3
name[0]|name[-1]|name[10]|text[2:5]|text[::-1]|words[1:]|words[:-1]|words[::-1]|words[::2]|words[-3:-1]|words[5:]|words[10]|words[-1]|words[3:0:-2]|(1, 2, 3)[1:]|text[-6:]|'abc'[1:][0]
person.name|person['name']|person.missing|person['missing']|person.address.city|person.tags[0]|people[0].name|people[0]['age']|person.items() | list|person.keys() | list|person.values() | list|person.get('x')|person.get('x', 1)|person.get('age')|words.0
[1, 'a', none, true, 2.5, [1], {'a': 1}]|(1,)|()|{}|[]|{'a': 1, 'b': [1, 2], 3: 'x'}|"it's"|['it\\'s', 'say "x"', '\\n\\t\\\\', 'é🙂', '\\x00\\x7f']|{'k': person}
'\\x41\\u00e9\\101\\a\\b\\f\\v\\q'|'\\U0001F642'|"a\\"b"|'a\\'b'
text | trim|text | length|text | upper|text | lower|text | title|text | capitalize|'hELLO wORLD-foo (bar)' | title|'straße' | upper|'ΑΣ ΣΑΣ' | lower|name | reverse|'éa日' | reverse|words | reverse | list|numbers | sort|numbers | sort(reverse=true)|words | sort|words | sort(case_sensitive=true)|words | unique | list|words | join(', ')|numbers | join|numbers | sum|people | sum(attribute='age')|people | map(attribute='name') | join('|')|people | map(attribute='extra', default='-') | list|words | map('upper') | list|words | map('replace', 'a', 'X') | list|words | map('length') | list
people | selectattr('on') | map(attribute='name') | list|people | rejectattr('on') | map(attribute='name') | list|people | selectattr('role', 'equalto', 'user') | list | length|people | selectattr('age', 'gt', 30) | map(attribute='name') | list|people | selectattr('extra', 'defined') | map(attribute='name') | list|numbers | select('odd') | list|numbers | reject('even') | list|numbers | select('gt', 2) | list|none_list | select | list|[0, 1, '', 'a', none] | select | list
people | sort(attribute='age') | map(attribute='name') | list|people | sort(attribute='name') | map(attribute='name') | list|people | map(attribute='age') | max|people | max(attribute='age')|numbers | min|words | min|none_list | max|people | map('attr', 'name') | list | length
words | first|words | last|name | first|name | last|none_list | first|none_list | last|(1, 2) | first|words | list|name | list|person | list|person | length|none_list | length|undefined_name | length|undefined_name | list
undefined_name | default('d')|nothing | default('d')|nothing | default('d', true)|empty | default('d', true)|empty | d('e', boolean=true)|undefined_name | default|number | default('x')
'42' | int|'4.7' | int|'x' | int|'x' | int(5)|' 12 ' | int|'0x1f' | int(0, 16)|'ff' | int(base=16)|'-8' | int|2.9 | int|-2.9 | int|true | int|none | int|'1_000' | int|'1e3' | int|'1.5' | float|'x' | float|'x' | float(1.5)|3 | float|'1e400' | float
2.5 | round|3.5 | round|2.675 | round(2)|2.1 | round(method='ceil')|2.9 | round(0, 'floor')|7 | round|-3 | abs|-2.5 | abs
'a,b,c'.split(',')|'a b  c '.split()|'a b  c '.split(' ')|'a,b,c'.split(',', 1)|'a,b,c'.rsplit(',', 1)|' a  b c '.split(none, 1)|' a  b c '.rsplit(none, 1)|'abc'.split('x')|''.split()|''.split(',')
text.strip()|'xxaxx'.strip('x')|'xyaxy'.lstrip('xy')|'xyaxy'.rstrip('yx')|'\\n\\na\\n'.strip('\\n')|'éaé'.strip('é')|'\\u00a0a\\u3000'.strip()|name.startswith('A')|name.endswith('da')|name.startswith(('x', 'A'))|name.upper()|name.lower()|'they\\'re bill\\'s'.title()|'aBC'.capitalize()|'ABC'.isupper()|'abc1'.islower()|'12'.isdigit()|''.isdigit()|'ab'.isalpha()|'a1'.isalnum()|' '.isspace()
'banana'.replace('a', 'o')|'banana'.replace('a', 'o', 2)|'abc'.replace('', '-')|'banana' | replace('an', 'AN', 1)|'banana'.find('n')|'日本語'.find('語')|'banana'.rfind('n')|'banana'.find('x')|'banana'.count('an')|'banana'.index('n')|'-'.join(words)|'a\\nb\\r\\nc'.splitlines()|'a=b=c'.partition('=')|'a=b=c'.rpartition('=')|'abc'.partition('x')|'abc'.removeprefix('a')|'abc'.removesuffix('c')
'%s-%d' % ('a', 3)|'%s' % 'x'|'%05.1f|%x|%%' % (2.25, 255)|'%(a)s' % {'a': 1}|'%-4s|%4s' % ('a', 'b')|'%r' % 'x'|'%s, %s!' | format('a', 'b')|'%(a)s' | format(a=1)|'{} {}'.format(1, 'b')|'{1}{0}'.format('a', 'b')|'{a}!'.format(a=person.name)|'{{}}'.format()
person | tojson|person | tojson(indent=2)|people | tojson(indent=4)|[] | tojson(indent=2)|{} | tojson(indent=2)|[1.0, 1e100, 0.1, -0.0] | tojson|messages | tojson|messages | tojson(ensure_ascii=true)|{'b': 1, 'a': 2} | tojson(sort_keys=true)|[1, 2] | tojson(separators=(',', ':'))|person | tojson(separators=[', ', ' = '])|'\\x01\\x7f\\b\\f' | tojson|{1: 2, none: 3, true: 4} | tojson|person | tojson(true, 1)|none | tojson|(1, 2) | tojson|'</a>&' | tojson|[[], {}] | tojson(indent=1)
person | dictsort|{'b': 1, 'A': 2} | dictsort|{'b': 1, 'A': 2} | dictsort(true)|{'b': 1, 'a': 2} | dictsort(by='value')|{'b': 1, 'a': 2} | dictsort(reverse=true)|person | items | list | length|undefined_name | items | list
'a\\nb\\n\\nc' | indent|'a\\nb' | indent(2, true)|'a\\n\\nb' | indent(2, blank=true)|'a\\nb\\n' | indent('> ')|5 | string|none | string|undefined_name | string|[1] | string|'<b>' | safe
name is defined|undefined_name is defined|undefined_name is undefined|nothing is none|nothing is not none|name is string|number is number|ratio is float|number is integer|yes is integer|yes is boolean|yes is true|no is false|1 is true|person is mapping|words is sequence|name is sequence|person is sequence|number is sequence|name is iterable|number is iterable|words is iterable|undefined_name is iterable|3 is odd|4 is even|9 is divisibleby 3|9 is divisibleby(2)|1 is in [1]|'a' is in 'abc'|1 is eq 1|1 is equalto(2)|1 is ne 2|1 is lt 2|2 is ge 2|'abc' is lower|'ABC' is upper|none is sameas none|yes is sameas true|range is callable|name is not number|name is string and number is string|name is string or no|not name is string
range(5) | list|range(2, 5) | list|range(5, 0, -2) | list|range(0) | list|range(3) | sum|dict(a=1, b=2)|dict({'a': 1}, b=2)|namespace(a=1).a|loop is defined|messages[-1].content.split('</think>')[-1].lstrip('\\n')|messages[-1]['content'].split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')|messages[0].role == 'system' and messages | length > 2|(messages | last).role|messages | map(attribute='role') | unique | list | length|people | map(attribute='name') | map('lower') | sort | join(' ')|{'a': {'b': [1, {'c': 2}]}}.a.b[1].c|people | map(attribute='tags.0') | list | length
person.update({'a': 1})|words.append(1)|missing.attribute|missing.method()|1 + 'a'|'a' + 1|none + 'a'|1 < 'a'|missing + 1|-missing|none | length|5 | list|none | join|1 / 0|1 // 0|1 % 0|undefined_function()|'a'.nomethod()|name()|none is in none|range(1000000)|none.x.y|missing | tojson|namespace | tojson|raise_exception('boom')|'%d' % 'x'|'{}'.format()|'abc'.index('x')|'a'.split('')|{[1]: 2}|people | selectattr('age', 'nosuchtest') | list|name | nosuchfilter|missing[0]|[1, 'a'] | sort|name.__class__|().__class__.__bases__|person.__init__|''.format.__globals__
""".strip()

TEMPLATES = [
    "a\n{% if yes %}\nb\n{% endif %}\nc\n",
    "a\n   {% if yes %}   \n  b\n  {%- endif %}  \n c",
    "a  {%- if yes -%}  b  {%- endif -%}  c",
    "a\n  {%+ if yes %}b{% endif +%}\nc",
    "  {{ 1 }}\n  {{- 2 }}  \n {{ 3 -}}  \n x\n",
    "{# c #}\n a {#- c -#} b\n   {# c #}   \n d\n{#+ x +#}\ne",
    "x {% raw %} {{ a }} {% b %} {% endraw %} y",
    "x\n  {%- raw -%}\n  {{ a }} \n{%- endraw -%}\n  y",
    "{% raw %}\na{% endraw %}\nb",
    "a\r\nb\rc\n{% if yes %}\r\nd{% endif %}\r\n",
    "one\n\n",
    "{% for w in words %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}"
    "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {{ w }};{% endfor %}",
    "{% for w in words %}{{ loop.previtem }}<{{ w }}>{{ loop.nextitem }} {% endfor %}",
    "{% for w in words %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for k, v in person.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in person | dictsort %}{{ k }};{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for k in person %}{{ k }} {% endfor %}",
    "{% for c in 'hé日' %}{{ c }}.{% endfor %}",
    "{% for p in people if p.on %}{{ loop.index }}/{{ loop.length }}{{ p.name }} {% endfor %}",
    "{% for p in people if p.age > 100 %}x{% else %}nobody{% endfor %}",
    "{% for x in none_list %}x{% else %}empty{% endfor %}",
    "{% for x in undefined_name %}x{% else %}empty{% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in [1] %}{% break %}{% else %}else{% endfor %}",
    "{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{% if y == 3 %}{% continue %}{% endif %}{{ x }}{{ y }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in words if x is string if x else [] %}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}{% set (c, d) = (3, 4) %}{{ c }}{{ d }}",
    "{% set x %}\n  hi {{ name }}\n{% endset %}[{{ x }}]",
    "{% set x | upper | trim %} hi {{ name }} {% endset %}[{{ x }}]",
    "{% set ns = namespace(n=0, l=[]) %}{% for w in words %}{% set ns.n = ns.n + 1 %}{% set ns.l = ns.l + [w] %}{% endfor %}{{ ns.n }}{{ ns.l }}{{ ns.missing }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}",
    "{% set ns.x = 1 %}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% macro m(a, b='d') %}[{{ a }}|{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}",
    "{% macro m() %}\n  x\n{% endmacro %}{{ m() }}{{ m() | trim }}{{ m() ~ 'y' }}",
    "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "{% set g = 'G' %}{% macro m() %}{{ g }}{{ name }}{% endmacro %}{% set g = 'H' %}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(c=2) }}",
    "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}",
    "{% macro m(x) %}<{{ caller() }}{{ x }}>{% endmacro %}{% call m(1) %}body {{ name }}{% endcall %}",
    "{% macro m() %}{{ caller(1) }}{{ caller(2) }}{% endmacro %}{% call(v) m() %}v{{ v }}{% endcall %}",
    "{% macro m() %}{% set inner = 5 %}{{ inner }}{% endmacro %}{{ m() }}{{ inner }}",
    "{% macro m(*args) %}{% endmacro %}",
    "{% filter upper %}a {{ name }} b{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}banana{% endfilter %}",
    "{% with a = 1, b = name %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}",
    "{% print 1 + 1 %}{% print name, 'x' %}",
    "{% generation %}a{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}",
    "{% if no %}a{% elif nothing %}b{% elif number == 7 %}c{% else %}d{% endif %}",
    "{% if not no and yes %}a{% endif %}{% if words %}b{% endif %}{% if none_list %}c{% endif %}",
    "{% if name is defined and name is not none and name != '' %}a{% endif %}",
    "{% if (1, 2) %}t{% endif %}{% if '' , %}u{% endif %}",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'}}': 1}['}}'] }}{{ '%}' }}{{ '{{' }}",
    "{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1, 2,) }}{{ dict(a=1,) }}",
    "{{ dict(*[{'a': 1}], **{'b': 2}) }}{{ range(*[1, 3]) | list }}",
    "{{- name -}} x {{+ name }}{{-1}}",
    "{%for x in[1,2]%}{{x}}{%endfor%}{%if yes%}y{%endif%}",
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message.content | trim }}{% endfor %}",
    "{% set loop_messages = messages[1:] if messages[0].role == 'system' else messages %}{{ loop_messages | length }}",
    "{%- set d = dict(people[0], name='Zed') %}{{ d.name }}{{ d | length }}",
    "{{ name }}\n{{ name }}\n\n{{ name }}\n",
    "{{ undefined_name }}{{ none }}{{ true }}{{ 1.0 }}",
    "{{ x if x is defined else 'no x' }}{{ (y | default([]))[0] }}",
    "{{ 'a' if no }}|{{ ('a' if no) is defined }}",
    "{% if loop is defined %}x{% endif %}{% for i in [1] %}{{ loop is defined }}{% endfor %}",
    "{{ words | map('first') | join }}{{ words[0] | first | upper }}",
    "{{ 1 if yes else 2 }}{{ -1 | abs }}{{ (-1) | abs }}{{ 2 * 3 | string }}{{ 'a' ~ 'b' | upper }}",
    "{{ not yes == no }}{{ 1 + 1 == 2 and 'x' in 'xy' }}{{ 1 in [1] == true }}",
    "{% for i in range(3) %}{{ i }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% endif %}", "{% if yes %}", "{% for x in y %}", "{{ 1 + }}", "{{ (1 }}", "{{ 'abc }}", "{# x", "{% foo %}",
    "{% if %}x{% endif %}", "{{ }}", "{% set 1 = 2 %}", "{{ a b }}", "{% for x of y %}{% endfor %}", "{{ 1 ] }}",
    "{% raw %}x", "{% break %}", "{{ '\\u12' }}", "{{ x | }}", "{{ x is }}", "{{ $ }}", "{% set true = 1 %}",
    "{% include 'x' %}", "{% macro %}{% endmacro %}", "{{ [1, }}", "{% else %}",
]


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    class TemplateNamespace(jinja2.utils.Namespace):
        def __setitem__(self, name, value):
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(name)
            super().__setitem__(name, value)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["namespace"] = TemplateNamespace
    return env


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def split_expressions():
    # "|" separates expressions; a filter has a space on both sides of it, a separator on neither.
    for line in EXPRESSIONS.splitlines():
        line = line.replace("'|'", "'\0'").replace("f|%x|%", "f\0%x\0%").replace("4s|%4", "4s\0%4")
        for expression in line.replace(" | ", "\1").split("|"):
            yield expression.replace("\1", " | ").replace("\0", "|").replace("\\\\", "\\")


def main():
    env = environment()
    cases = []
    for template in ["{{ " + e + " }}" for e in split_expressions()] + TEMPLATES:
        try:
            cases.append({"template": template, "expected": env.from_string(template).render(VARIABLES)})
        except Exception as error:  # any refusal will do
            cases.append({"template": template, "error": f"{type(error).__name__}: {error}"[:100]})
    path = pathlib.Path(__file__).parent / "data" / "jinja.json"
    path.write_text(json.dumps({"variables": VARIABLES, "cases": cases}, ensure_ascii=False, indent=0) + "\n")
    print(f"{len(cases)} cases, {sum('error' in c for c in cases)} refusals -> {path}")


if __name__ == "__main__":
    main()
