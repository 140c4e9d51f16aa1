"""Golden logits of the six R1 distills at their true width, with INT4 weights made by a formula.

The weights are too large to commit (the 70B's one layer is 3.4 GB in float32), so both sides make them from
the tensor's name: this file in numpy, formula_weights.cpp in C++. Hugging Face transformers gets them
multiplied out, in float32.

    ref/bin/python tests/golden/distills/generate.py     # writes data/NAME.json and data/NAME.npy; needs 8 GB
"""

import json
import math
import pathlib

import numpy
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "runtime" / "checkpoint" / "configs"

# Layers: two, so that what the first leaves in the residual is read by a second; one where that takes too long.
LAYERS = {
    "r1-distill-qwen-1.5b": 2,
    "r1-distill-qwen-7b": 2,
    "r1-distill-qwen-14b": 2,
    "r1-distill-qwen-32b": 1,
    "r1-distill-llama-8b": 2,
    "r1-distill-llama-70b": 1,
}
VOCAB = 256
GROUP = 128
PROMPT_TOKENS = 24
GREEDY_TOKENS = 8


def words(name, count):
    """splitmix64 (Steele, Lea, Flood 2014) from a state that is FNV-1a of the name."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    z = numpy.arange(1, count + 1, dtype=numpy.uint64)
    z *= numpy.uint64(0x9E3779B97F4A7C15)
    z += numpy.uint64(state)
    z ^= z >> numpy.uint64(30)
    z *= numpy.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> numpy.uint64(27)
    z *= numpy.uint64(0x94D049BB133111EB)
    z ^= z >> numpy.uint64(31)
    return z


def signed_bytes(name, count):
    """-128 .. 127."""
    raw = words(name, (count + 7) // 8).astype("<u8").view(numpy.uint8)[:count]
    return raw.astype(numpy.float32) - 128


def power_of_two(x):
    return 2.0 ** round(math.log2(x))


def int4(name, n, k):
    raw = words(name, n * k // 16).astype("<u8").view(numpy.uint8)
    numbers = numpy.empty((n * k // 2, 2), dtype=numpy.float32)
    numbers[:, 0] = (raw & 15).astype(numpy.float32) - 8
    numbers[:, 1] = (raw >> 4).astype(numpy.float32) - 8
    groups = -(-k // GROUP)
    # A uniform number of -8 .. 7 has a standard deviation of 4.6.
    base = numpy.float32(power_of_two(1 / (4.6 * math.sqrt(k))))
    scale = (signed_bytes(name + ".scale", n * groups) / 256 + 1) * base  # base * [0.5, 1.5)
    scale = numpy.repeat(scale.reshape(n, groups), GROUP, axis=1)[:, :k]
    return numbers.reshape(n, k) * scale


def tensor(name, shape):
    if len(shape) == 1:
        scaled = signed_bytes(name, shape[0])
        return scaled / 512 + 1 if "norm" in name else scaled / 1024
    if "embed_tokens" in name:
        return (signed_bytes(name, shape[0] * shape[1]) / 256).reshape(shape)
    if "lm_head" in name:
        base = power_of_two(1 / math.sqrt(shape[1]))
        return (signed_bytes(name, shape[0] * shape[1]) / 64 * numpy.float32(base)).reshape(shape)
    return int4(name, *shape)


def generate(name, layers):
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    config.update(num_hidden_layers=layers, vocab_size=VOCAB, torch_dtype="float32")
    family = transformers.Qwen2Config if config["model_type"] == "qwen2" else transformers.LlamaConfig
    model_class = (transformers.Qwen2ForCausalLM if config["model_type"] == "qwen2"
                   else transformers.LlamaForCausalLM)
    hf_config = family.from_dict(config)
    hf_config._attn_implementation = "eager"
    transformers.modeling_utils.no_init_weights = True
    with torch.device("meta"):
        model = model_class(hf_config)
    weights = {key: torch.from_numpy(tensor(key, tuple(value.shape)))
               for key, value in model.state_dict().items()}
    model.load_state_dict(weights, assign=True, strict=True)
    del weights
    # Buffers that are computed, not stored, were made on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=hf_config)
    model = model.float().eval()
    prompt = [int(x) for x in words(name + " prompt", PROMPT_TOKENS) % numpy.uint64(VOCAB)]
    tokens = list(prompt)
    margins = []
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].numpy()
        last = logits[-1]
        for _ in range(GREEDY_TOKENS):
            best = numpy.sort(last)
            margins.append(float(best[-1] - best[-2]))
            tokens.append(int(last.argmax()))
            last = model(torch.tensor([tokens])).logits[0, -1].numpy()
    largest = float(abs(logits).max())
    print(f"{name}: largest logit {largest:.3f}, smallest greedy lead {min(margins):.4f}", flush=True)
    (HERE / "data").mkdir(exist_ok=True)
    numpy.save(HERE / "data" / f"{name}.npy", logits.astype(numpy.float32))
    golden = {"num_hidden_layers": layers, "vocab_size": VOCAB, "prompt": prompt,
              "greedy": tokens[len(prompt):], "max_abs_logit": largest, "greedy_min_margin": min(margins)}
    (HERE / "data" / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    for model_name, num_layers in LAYERS.items():
        generate(model_name, num_layers)
