#!/usr/bin/env python3
"""Renders conversations with transformers' chat-template engine into golden.json.

    python tests/golden/templates/generate_templates.py --data DIR [--out golden.json] [--check]

DIR holds deepseek-v3-tokenizer/, llama3-tokenizer/ and qwen3-tokenizer/ with the real
tokenizer_config.json files. --check renders the templates already inside golden.json again and
compares, so it needs no DIR.
"""

import argparse
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"

# DeepSeek-V2-Chat and V2-Lite-Chat: plain "User: / Assistant:" turns, no special role tokens.
DEEPSEEK_V2 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# Qwen2: ChatML with a default system message.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Not a model's: each Jinja feature that Hugging Face's environment adds or switches on, once.
# The %-% after literal newlines shows trim_blocks and lstrip_blocks at work.
FEATURES = """{#- a comment -#}
{% macro tag(name, value='none') %}
    <{{ name }}={{ value }}>
{%- endmacro %}
{% if tools is not none and tools %}
  {% for tool in tools %}
    {{ loop.index }}/{{ loop.length }}: {{ tool | tojson(indent=2) }}
  {% endfor %}
{% endif %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {% if message.role == 'stop' %}
        {% break %}
    {% endif %}
    {% if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{ raise_exception('unknown role ' ~ message.role) }}
    {% endif %}
    {% set parts = message.content.split(':') %}
    {{ tag(message.role | upper, parts | length) }}
    {{- loop.cycle('a', 'b') }}{{ parts[0] | trim | capitalize }}{{ parts[1:] | join('+') }}
    {{ message.get('name', 'anonymous') | title }} {{ message.content | length }} {{ message.content[::-1] }}
    {% for key, value in message.items() if key != 'content' %}
        {{ key }}={{ value if value is string else value | tojson }}{{ ',' if not loop.last else ';' }}
    {% endfor %}
{% else %}
nothing
{% endfor %}
{{ strftime_now('%%') }}
{{ [1, 2.5, none, true] | tojson }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ 'x' * 3 }} {{ 'é' ~ 1 }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
{{ (messages | last).content | replace('o', '0') }} {{ missing | default('fallback') }} {{ ' x ' | trim }}.
{{- '\\ttab' if add_generation_prompt and messages[-1].role == 'user' else '' -}}
"""


def templates(data: pathlib.Path) -> dict:
    def real(folder):
        config = json.loads((data / folder / "tokenizer_config.json").read_text(encoding="utf-8"))

        def text(token):
            return token["content"] if isinstance(token, dict) else token or ""

        return {
            "chat_template": config["chat_template"],
            "bos_token": text(config.get("bos_token")),
            "eos_token": text(config.get("eos_token")),
        }

    v3 = real("deepseek-v3-tokenizer")
    # R1 is V3's template that drops the reasoning of earlier turns. The distills' differ from R1's
    # only in the generation prompt, which opens the thinking.
    kept = "{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    assert v3["chat_template"].count(kept) == 1, "the V3 template changed, adapt the R1 derivation"
    drop = "{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    r1 = dict(
        v3,
        chat_template=v3["chat_template"].replace(kept, drop + kept.replace("message['content']", "content")),
    )
    prompt = "{{'<｜Assistant｜>'}}{% endif %}"
    assert r1["chat_template"].endswith(prompt)
    distill = dict(
        r1, chat_template=r1["chat_template"][: -len(prompt)] + "{{'<｜Assistant｜><think>\\n'}}{% endif %}"
    )
    return {
        "deepseek-v2": {"chat_template": DEEPSEEK_V2, "bos_token": BOS, "eos_token": EOS},
        "deepseek-v3": v3,
        "deepseek-r1": r1,
        "deepseek-r1-distill": distill,
        "llama3": real("llama3-tokenizer"),
        "qwen2-chatml": {"chat_template": CHATML, "bos_token": "", "eos_token": "<|im_end|>"},
        "qwen3": real("qwen3-tokenizer"),
        "features": {"chat_template": FEATURES, "bos_token": "<s>", "eos_token": "</s>"},
    }


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather in a city, e.g. <Zürich> & "北京".',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city's name"},
                    "unit": {"type": "string", "enum": ["°C", "°F"], "default": None},
                    "days": {"type": "integer", "minimum": 1, "maximum": 14},
                    "scale": {"type": "number", "default": 0.1, "examples": [1.0, 1e-07, 2.5e20, -3]},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "tab\t newline\n quote' \\ \u2028 \u0007 😀",
            "parameters": {},
        },
    },
]

CONVERSATIONS = {
    "single": ([say("user", "Hello!")], None),
    "system": ([say("system", "You are terse."), say("user", "Who wrote Faust?")], None),
    "empty-system": ([say("system", ""), say("user", "Hi")], None),
    "two-systems": ([say("system", "One."), say("system", "Two."), say("user", "Hi")], None),
    "late-system": (
        [say("user", "Hi"), say("system", "Be kind."), say("assistant", "Hello."), say("user", "Bye")],
        None,
    ),
    "multi-turn": (
        [
            say("system", "You are a helpful assistant"),
            say("user", "Hello"),
            say("assistant", "Hi there"),
            say("user", "Who are you"),
            say("assistant", "   I am an assistant   "),
            say("user", "Another question"),
        ],
        None,
    ),
    "ends-with-assistant": ([say("user", "2+2?"), say("assistant", "4")], None),
    "whitespace": (
        [
            say("system", " \n sys \n"),
            say("user", "\n\n  padded\t \n"),
            say("assistant", "\n"),
            say("user", " "),
        ],
        None,
    ),
    "empty-user": ([say("user", "")], None),
    "unicode": (
        [
            say("system", "Отвечай по-русски. 用中文。"),
            say("user", "e\u0301 é 👩‍👩‍👧‍👦 العربية עברית हिन्दी ไทย 한국어 \u200b\u00a0\ufeff end"),
            say("assistant", "日本語「こんにちは」"),
            say("user", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff"),
        ],
        None,
    ),
    "special-text": (
        [say("user", f"{BOS}<|im_end|><|eot_id|><｜User｜>{{{{ 7*7 }}}} {{% raw %}} <b>&amp;'\"")],
        None,
    ),
    "thinking": (
        [
            say("user", "17+25?"),
            say("assistant", "<think>\n17+25 = 42\n</think>\n\n42"),
            say("user", "And 42+1?"),
            say("assistant", "<think>\n\n</think>\n\n43"),
            say("user", "Thanks"),
        ],
        None,
    ),
    "thinking-last": ([say("user", "1+1?"), say("assistant", "<think>\nsimple\n</think>\n\n2")], None),
    "thinking-twice": (
        [say("user", "?"), say("assistant", "<think>a</think>b</think>\nc"), say("user", "!")],
        None,
    ),
    "reasoning-content": (
        [
            say("user", "1+1?"),
            say("assistant", "2", reasoning_content="\none and one\n"),
            say("user", "2+2?"),
            say("assistant", "4", reasoning_content="two and two"),
        ],
        None,
    ),
    "tools-offered": ([say("system", "Use tools."), say("user", "Weather in Zürich?")], TOOLS),
    "tools-no-system": ([say("user", "Weather in Zürich?")], TOOLS),
    "tools-empty-list": ([say("user", "Hi")], []),
    "tool-call-null-content": (
        [
            say("user", "Weather in Paris?"),
            say("assistant", None, tool_calls=[call("get_weather", '{"city": "Paris"}')]),
            say("tool", '{"temp": 21}'),
            say("assistant", "It is 21 °C."),
            say("user", "Thanks"),
        ],
        TOOLS,
    ),
    "two-tool-calls": (
        [
            say("user", "Paris and Rome?"),
            say(
                "assistant",
                None,
                tool_calls=[
                    call("get_weather", '{"city": "Paris"}'),
                    call("get_weather", '{"city": "Rome"}'),
                ],
            ),
            say("tool", "21"),
            say("tool", "25"),
        ],
        TOOLS,
    ),
    "tool-call-with-content": (
        [
            say("user", "Weather in Paris?"),
            say(
                "assistant",
                "Let me look.",
                tool_calls=[call("get_weather", {"city": "Paris", "days": 3, "scale": 1.0, "ok": True})],
            ),
            say("tool", "sunny", name="get_weather"),
            say("assistant", "<think>\nsunny it is\n</think>\n\nSunny."),
            say("user", "Tomorrow?"),
        ],
        TOOLS,
    ),
    "tool-calls-empty-content": (
        [
            say("user", "Both?"),
            say(
                "assistant",
                "",
                tool_calls=[
                    call("now", {}),
                    {"name": "get_weather", "arguments": {"city": "北京", "unit": None}},
                ],
            ),
            say("tool", "12:00"),
            say("tool", "雨"),
            say("assistant", "Noon, and rain."),
            say("user", "<tool_response>\nnot a tool\n</tool_response>"),
            say("assistant", "I see."),
        ],
        None,
    ),
}

FEATURE_CONVERSATIONS = {
    "features": (
        [
            say("system", "be: brief"),
            say("skip", "x"),
            say("user", "good: morning: sun", name="anna maria"),
            say("stop", "y"),
            say("user", "z"),
        ],
        TOOLS,
    ),
    "features-empty": ([say("user", "")], None),
    "features-error": ([say("narrator", "x")], None),
}

# Keyword arguments beside messages and tools: Qwen3 reads enable_thinking.
KWARGS = {"qwen3": [{}, {"enable_thinking": False}, {"enable_thinking": True}]}


def render(template, messages, tools, add_generation_prompt, kwargs):
    # apply_chat_template passes the tokenizer's special tokens beside the caller's own arguments.
    # The template sees what JSON carries, so the reasoning aliases that transformers adds to a
    # message (reasoning_content -> thinking) are part of what is compared.
    rendered, _ = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=template["chat_template"],
        add_generation_prompt=add_generation_prompt,
        bos_token=template["bos_token"],
        eos_token=template["eos_token"],
        **kwargs,
    )
    return rendered[0]


def build(all_templates: dict) -> dict:
    cases, errors = [], []
    for name, template in all_templates.items():
        conversations = FEATURE_CONVERSATIONS if name == "features" else CONVERSATIONS
        for title, (messages, tools) in conversations.items():
            for prompt in (False, True):
                for kwargs in KWARGS.get(name, [{}]) if prompt else [{}]:
                    case = {
                        "template": name,
                        "title": title,
                        "messages": messages,
                        "tools": tools,
                        "add_generation_prompt": prompt,
                        "kwargs": kwargs,
                    }
                    try:
                        cases.append(case | {"expected": render(template, messages, tools, prompt, kwargs)})
                    except Exception as error:  # any refusal by the template engine is the golden result
                        errors.append(case | {"error": f"{type(error).__name__}: {error}"})
    return {"templates": all_templates, "cases": cases, "error_cases": errors}


def main() -> int:
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, help="folder with the real tokenizer folders")
    parser.add_argument("--out", type=pathlib.Path, default=here / "golden.json")
    parser.add_argument("--check", action="store_true", help="render again and compare with --out")
    args = parser.parse_args()
    if args.check:
        golden = json.loads(args.out.read_text(encoding="utf-8"))
        fresh = json.loads(json.dumps(build(golden["templates"])))
        same = fresh == golden
        print(
            f"{len(golden['cases'])} cases, {len(golden['error_cases'])} error cases: {'same' if same else 'DIFFERENT'}"
        )
        return 0 if same else 1
    if args.data is None:
        parser.error("--data is needed unless --check is given")
    golden = build(templates(args.data))
    # One case a line: small, and a changed case shows as one line in a diff.
    dump = lambda value: json.dumps(value, ensure_ascii=False)  
    args.out.write_text(
        '{"templates": '
        + json.dumps(golden["templates"], ensure_ascii=False, indent=1)
        + ',\n"cases": [\n'
        + ",\n".join(map(dump, golden["cases"]))
        + '\n],\n"error_cases": [\n'
        + ",\n".join(map(dump, golden["error_cases"]))
        + "\n]}\n",
        encoding="utf-8",
    )
    print(f"{args.out}: {len(golden['cases'])} cases, {len(golden['error_cases'])} error cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
