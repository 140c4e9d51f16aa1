"""Makes the tokenizer of the demo model: byte-level BPE with DeepSeek-V3's construction and special tokens."""

import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import generate

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
LATER_TOKENS = [
    ("<｜fim▁hole｜>", False), ("<｜fim▁begin｜>", False), ("<｜fim▁end｜>", False), ("<｜User｜>", False),
    ("<｜Assistant｜>", False), ("<|EOT|>", True), ("<｜tool▁calls▁begin｜>", False), ("<｜tool▁calls▁end｜>", False),
    ("<｜tool▁call▁begin｜>", False), ("<｜tool▁call▁end｜>", False), ("<｜tool▁outputs▁begin｜>", False),
    ("<｜tool▁outputs▁end｜>", False), ("<｜tool▁output▁begin｜>", False), ("<｜tool▁output▁end｜>", False),
    ("<｜tool▁sep｜>", False), ("<think>", False), ("</think>", False),
]
# V3's splits, but digits stand alone (V3 groups up to three) so that sums are learned digit by digit.
SPLITS = [
    r"\p{N}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]

# The construction of DeepSeek R1's template: system text first, thinking of earlier answers dropped,
# tool calls and their outputs in their own tokens. The model itself opens <think> when it wants to.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='', has_system=false, in_outputs=false) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{%- if ns.has_system %}{% set ns.system = ns.system + '\n\n' + message['content'] %}"
    "{%- else %}{% set ns.system = message['content'] %}{% set ns.has_system = true %}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.in_outputs = false -%}"
    "{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- set content = message['content'] if message['content'] is defined and message['content'] is not none else '' %}"
    "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
    "{{ ('<｜tool▁outputs▁end｜>' if ns.in_outputs else '<｜Assistant｜>') + content }}{%- set ns.in_outputs = false -%}"
    "{%- if message['tool_calls'] is defined and message['tool_calls'] %}"
    "{{ '<｜tool▁calls▁begin｜>' }}"
    "{%- for tool in message['tool_calls'] %}{%- if not loop.first %}{{ '\n' }}{%- endif %}"
    "{{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\n```json\n'"
    " + tool['function']['arguments'] + '\n```<｜tool▁call▁end｜>' }}"
    "{%- endfor %}{{ '<｜tool▁calls▁end｜>' }}{%- endif %}"
    "{{ '<｜end▁of▁sentence｜>' }}{%- endif %}"
    "{%- if message['role'] == 'tool' %}"
    "{%- if not ns.in_outputs %}{{ '<｜tool▁outputs▁begin｜>' }}{%- set ns.in_outputs = true -%}"
    "{%- else %}{{ '\n' }}{%- endif %}"
    "{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}{%- endif %}"
    "{%- endfor -%}"
    "{% if ns.in_outputs %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}"
    "{% if add_generation_prompt and not ns.in_outputs %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def corpus(count=30000, seed=11):
    rng = random.Random(seed)
    for _ in range(count):
        dialogue = generate.dialogue(rng)
        yield dialogue.system
        for turn in dialogue.turns:
            yield from (turn.user, turn.answer, turn.think)


def make_tokenizer(vocab_size):
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(LATER_TOKENS),
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in (BOS, EOS, PAD)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=True, special=special) for text, special in LATER_TOKENS])
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    return tokenizer


def tokenizer_config(max_length):
    def token(content):
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}

    return {
        "add_bos_token": True, "add_eos_token": False, "bos_token": token(BOS), "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS), "legacy": True, "model_max_length": max_length, "pad_token": token(EOS),
        "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def save_tokenizer(tokenizer, folder, max_length):
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    save_tokenizer_config(folder, max_length)


def save_tokenizer_config(folder, max_length):
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as out:
        json.dump(tokenizer_config(max_length), out, ensure_ascii=False, indent=2)
        out.write("\n")
