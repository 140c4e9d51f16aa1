#!/usr/bin/env python3
"""Makes tiny random checkpoints and their golden logits with Hugging Face transformers in fp32.

    python tests/golden/generate.py --out tests/golden/data [--only NAME]
    python tests/golden/generate.py --out tests/golden/data --check      make all again, compare, write nothing
    python tests/golden/generate.py --out tests/golden/data --bf16       how far Hugging Face in BF16 is from the golden logits

Every configuration is cross-checked against reference.py (float64) before it is written.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

import reference
from configurations import CONFIGURATIONS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GREEDY_TOKENS = 64
# A faithful fp32 implementation is within 1e-4 of the largest logit, so a lead of 1e-3 decides each greedy token.
GREEDY_MARGIN = 1e-3
# Router scores in fp32 are good to about 1e-6: a relative lead of 1e-4 decides each expert.
ROUTER_MARGIN = 1e-4
CROSS_CHECK = 1e-5
FP8_MAX = 448.0  # largest e4m3 value


# Weights --------------------------------------------------------------------------------------------------


class Weights:
    """Names, shapes and values of a checkpoint, drawn in a fixed order from one generator."""

    def __init__(self, config, seed, bias_shift):
        self.config, self.rng, self.tensors, self.bias_shift = (
            config,
            np.random.default_rng(seed),
            {},
            bias_shift,
        )
        self.dtype = DTYPES[config["torch_dtype"]]
        c, hidden = config, config["hidden_size"]
        self.embedding("model.embed_tokens.weight", tied=c["tie_word_embeddings"])
        for index in range(c["num_hidden_layers"]):
            self.layer(index)
        self.norm("model.norm.weight", hidden)
        if not c["tie_word_embeddings"]:
            self.linear("lm_head", c["vocab_size"], hidden, gain=3.0, fp8=False)
        if c.get("num_nextn_predict_layers"):
            self.mtp(c["num_hidden_layers"])

    def put(self, name, values, dtype=None):
        self.tensors[name] = torch.from_numpy(values).float().to(dtype or self.dtype).contiguous()

    def norm(self, name, size):
        self.put(name, 1 + 0.2 * self.rng.standard_normal(size))

    def embedding(self, name, tied):
        # A tied embedding is also the head: hidden states have unit scale, so 3 / sqrt(hidden) spreads the logits.
        scale = 3.0 / np.sqrt(self.config["hidden_size"]) if tied else 1.0
        self.put(
            name, scale * self.rng.standard_normal((self.config["vocab_size"], self.config["hidden_size"]))
        )

    def linear(self, name, rows, columns, gain=1.0, fp8=True, bias=False):
        values = self.rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)
        if fp8 and "quantization_config" in self.config:
            self.put_fp8(name + ".weight", torch.from_numpy(values).float())
        else:
            self.put(name + ".weight", values)
        if bias:
            self.put(name + ".bias", 0.5 * self.rng.standard_normal(rows))

    def put_fp8(self, name, values):
        block = reference.FP8_BLOCK
        rows, columns = values.shape
        high, wide = -(-rows // block), -(-columns // block)
        # Real blocks differ in size: a factor per block makes a wrong scale index visible.
        spread = torch.from_numpy(np.exp(0.7 * self.rng.standard_normal((high, wide)))).float()
        scale = torch.empty(high, wide)
        quantized = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
        for i in range(high):
            for j in range(wide):
                part = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
                tile = values[part] * spread[i, j]
                scale[i, j] = tile.abs().max() / FP8_MAX
                quantized[part] = (tile / scale[i, j]).to(torch.float8_e4m3fn)
        self.tensors[name] = quantized
        self.tensors[name + "_scale_inv"] = scale

    def mlp(self, prefix, hidden, inner, gain=1.4):
        self.linear(prefix + "gate_proj", inner, hidden, gain=1.4)
        self.linear(prefix + "up_proj", inner, hidden, gain=1.4)
        self.linear(prefix + "down_proj", hidden, inner, gain=gain)

    def layer(self, index):
        c, p = self.config, f"model.layers.{index}."
        hidden = c["hidden_size"]
        self.norm(p + "input_layernorm.weight", hidden)
        self.norm(p + "post_attention_layernorm.weight", hidden)
        (self.mla if "kv_lora_rank" in c else self.gqa)(p + "self_attn.", hidden)
        if "n_routed_experts" in c and index >= c["first_k_dense_replace"]:
            self.moe(p + "mlp.", hidden)
        else:
            self.mlp(p + "mlp.", hidden, c["intermediate_size"])

    def mla(self, p, hidden):
        c = self.config
        heads, qk = c["num_attention_heads"], c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
        if c["q_lora_rank"] is None:
            self.linear(p + "q_proj", heads * qk, hidden, gain=1.2)
        else:
            self.linear(p + "q_a_proj", c["q_lora_rank"], hidden)
            self.norm(p + "q_a_layernorm.weight", c["q_lora_rank"])
            self.linear(p + "q_b_proj", heads * qk, c["q_lora_rank"], gain=1.2)
        self.linear(p + "kv_a_proj_with_mqa", c["kv_lora_rank"] + c["qk_rope_head_dim"], hidden, gain=1.2)
        self.norm(p + "kv_a_layernorm.weight", c["kv_lora_rank"])
        self.linear(
            p + "kv_b_proj", heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"], gain=1.2
        )
        self.linear(p + "o_proj", hidden, heads * c["v_head_dim"], gain=1.2)

    def gqa(self, p, hidden):
        c = self.config
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        dim, bias = c.get("head_dim") or hidden // heads, c["model_type"] == "qwen2"
        self.linear(p + "q_proj", heads * dim, hidden, gain=1.2, bias=bias)
        self.linear(p + "k_proj", kv * dim, hidden, gain=1.2, bias=bias)
        self.linear(p + "v_proj", kv * dim, hidden, gain=1.2, bias=bias)
        self.linear(p + "o_proj", hidden, heads * dim, gain=1.2)

    def moe(self, p, hidden):
        c = self.config
        self.linear(p + "gate", c["n_routed_experts"], hidden, gain=1.5, fp8=False)
        if c["topk_method"] == "noaux_tc":
            bias = 0.1 * self.rng.standard_normal(c["n_routed_experts"]) + self.bias_shift
            self.put(p + "gate.e_score_correction_bias", bias, torch.float32)
        # A large routed_scaling_factor belongs to small softmax scores; the experts' share stays like the shared one's.
        gain = 1.4 * min(1.0, 2.5 / c["routed_scaling_factor"])
        for expert in range(c["n_routed_experts"]):
            self.mlp(f"{p}experts.{expert}.", hidden, c["moe_intermediate_size"], gain)
        self.mlp(p + "shared_experts.", hidden, c["moe_intermediate_size"] * c["n_shared_experts"])

    def mtp(self, index):
        """DeepSeek's MTP layer: its copies of embedding and head are the main model's own values."""
        p, hidden = f"model.layers.{index}.", self.config["hidden_size"]
        self.tensors[p + "embed_tokens.weight"] = self.tensors["model.embed_tokens.weight"].clone()
        self.norm(p + "enorm.weight", hidden)
        self.norm(p + "hnorm.weight", hidden)
        self.linear(p + "eh_proj", hidden, 2 * hidden, fp8=False)
        self.layer(index)
        self.norm(p + "shared_head.norm.weight", hidden)
        self.tensors[p + "shared_head.head.weight"] = self.tensors["lm_head.weight"].clone()


def write_checkpoint(folder, config, tensors, files):
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for i in range(files):
        file = f"model-{i + 1:05d}-of-{files:06d}.safetensors"  # DeepSeek's own numbering
        part = names[len(names) * i // files : len(names) * (i + 1) // files]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# Hugging Face ---------------------------------------------------------------------------------------------


def hugging_face(folder, config, weights):
    """The model in fp32. FP8 checkpoints go in multiplied out: transformers' FP8 kernels are not the reference."""
    model_class = getattr(transformers, config["architectures"][0])
    options = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
    if "kv_lora_rank" not in config:
        options.pop("experts_implementation")
    if "quantization_config" in config:
        with tempfile.TemporaryDirectory() as plain:
            plain = pathlib.Path(plain)
            tensors = {name: torch.from_numpy(value).float().contiguous() for name, value in weights.items()}
            write_checkpoint(
                plain, {k: v for k, v in config.items() if k != "quantization_config"}, tensors, 1
            )
            model, report = model_class.from_pretrained(plain, output_loading_info=True, **options)
    else:
        model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    mtp = f"model.layers.{config['num_hidden_layers']}."
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    assert all(key.startswith(mtp) for key in report["unexpected_keys"]), report
    if config["model_type"] == "deepseek_v2" and config["norm_topk_prob"]:
        # transformers' port ignores norm_topk_prob for V2; DeepSeek's gate normalises, and then does not scale.
        original = DeepseekV2TopkRouter.forward

        def normalised(router, hidden_states):
            logits, weights, indices = original(router, hidden_states)
            return logits, weights / (weights.sum(-1, keepdim=True) + 1e-20), indices

        for module in model.modules():
            if isinstance(module, DeepseekV2TopkRouter):
                module.forward = normalised.__get__(module)
    return model.eval()


@torch.no_grad()
def logits_of(model, tokens):
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


@torch.no_grad()
def mtp_logits_of(model, config, weights, tokens):
    p = f"model.layers.{config['num_hidden_layers']}."
    layer = MtpLayer(model.config.get_mtp_config(), v3.DeepseekV3DecoderLayer, v3.DeepseekV3RMSNorm, 0)
    state = {}
    for name in layer.state_dict():
        source = p + name.replace("mtp_block.", "").replace("post_norm", "shared_head.norm")
        if name.endswith("experts.gate_up_proj"):
            base = source.removesuffix("gate_up_proj")
            state[name] = np.stack(
                [
                    np.concatenate([weights[f"{base}{e}.{x}_proj.weight"] for x in ("gate", "up")])
                    for e in range(config["n_routed_experts"])
                ]
            )
        elif name.endswith("experts.down_proj"):
            base = source.removesuffix("down_proj")
            state[name] = np.stack(
                [weights[f"{base}{e}.down_proj.weight"] for e in range(config["n_routed_experts"])]
            )
        else:
            state[name] = weights[source]
    layer.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)).float() for name, value in state.items()}
    )
    ids = torch.tensor([tokens])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    positions = torch.arange(1, len(tokens))[None]
    mask = torch.full((len(tokens) - 1,) * 2, float("-inf")).triu(1)[None, None]
    out = layer.eval()(
        model.model.embed_tokens(ids[:, 1:]),
        hidden,
        model.model.rotary_emb(hidden, positions),
        mask,
        positions,
        None,
    )
    return model.lm_head(out)[0].float().numpy()


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


# One configuration ----------------------------------------------------------------------------------------


def attempt(name, seed, folder):
    """Writes the checkpoint and its golden files; False if this seed leaves a choice too close to call."""
    config, files, _ = CONFIGURATIONS[name]
    negative = name == "v3-negative-bias"
    tensors = Weights(config, seed, bias_shift=-1.5 if negative else 0.0).tensors
    write_checkpoint(folder, config, tensors, files)
    loaded_config, weights = reference.load(folder)
    assert loaded_config == config
    model = hugging_face(folder, config, weights)

    rng = np.random.default_rng([seed, 1])
    prompts = [rng.integers(2, config["vocab_size"], n).tolist() for n in (1, 20, 105)]
    path = list(prompts[1])
    margins, largest = [], 0.0
    for _ in range(GREEDY_TOKENS):
        logits = logits_of(model, path)[-1]
        second, first = np.sort(logits)[-2:]
        margins.append(float(first - second))
        largest = max(largest, float(np.abs(logits).max()))
        path.append(int(logits.argmax()))
    greedy = path[len(prompts[1]) :]
    outputs = [logits_of(model, prompt) for prompt in prompts]
    largest = max(largest, *(float(np.abs(o).max()) for o in outputs))

    errors, router, mask_value_matters = [], [], False
    for tokens, output in [*zip(prompts, outputs), (path, None)]:
        info = {}
        exact = reference.forward(config, weights, np.array(tokens), info)
        errors.append(relative(logits_of(model, tokens) if output is None else output, exact))
        router.append(info.get("router_margin"))
        mask_value_matters |= bool(info.get("mask_value_matters", False))
    # Real code disagrees about the mask's value: the one configuration made for it depends on it, no other does.
    if mask_value_matters != negative:
        return False
    is_moe = router[0] is not None
    if min(margins) <= GREEDY_MARGIN * largest or len(set(greedy)) < 12:
        return False
    if is_moe and min(float(r.min()) for r in router) <= ROUTER_MARGIN:
        return False
    assert max(errors) < CROSS_CHECK, f"{name}: Hugging Face and reference.py differ by {max(errors):.2e}"

    golden = {
        "name": name,
        "seed": seed,
        "prompts": prompts,
        "greedy": greedy,
        "greedy_min_margin": min(margins),
        "max_abs_logit": largest,
        "cross_check": max(errors),
    }
    if is_moe:
        golden["router_margin"] = [[round(min(float(m), 9.0), 6) for m in r] for r in router[:3]]
    for i, output in enumerate(outputs):
        np.save(folder / f"logits_{i}.npy", output.astype(np.float32))
    if config.get("num_nextn_predict_layers"):
        mtp = mtp_logits_of(model, config, weights, prompts[1])
        error = relative(mtp, reference.forward_mtp(config, weights, np.array(prompts[1])))
        assert error < CROSS_CHECK, f"{name}: the MTP layers differ by {error:.2e}"
        golden["cross_check_mtp"] = error
        np.save(folder / "mtp_logits_1.npy", mtp.astype(np.float32))
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    return True


def bf16_distance(name, folder):
    """Relative error of Hugging Face in BF16 by token of the longest prompt: median, worst, and worst before the
    first token that has a router lead below 1e-2, where BF16 may choose another expert."""
    config, weights = reference.load(folder)
    golden = json.loads((folder / "golden.json").read_text())
    model = hugging_face(folder, config, weights)
    # Everybody keeps the rotary frequencies and the correction bias in fp32.
    kept = {key: value.clone() for key, value in model.named_buffers()}
    model.to(torch.bfloat16)
    for key, value in kept.items():
        owner, _, attribute = key.rpartition(".")
        setattr(model.get_submodule(owner), attribute, value)
    expected = np.load(folder / "logits_2.npy")
    error = np.abs(logits_of(model, golden["prompts"][2]) - expected).max(1) / np.abs(expected).max()
    margin = (
        np.array(golden["router_margin"][2]) if "router_margin" in golden else np.full(len(error), np.inf)
    )
    close = np.nonzero(margin < 1e-2)[0]
    safe = error[: close[0] if len(close) else len(error)]
    return float(np.median(error)), float(error.max()), float(safe.max()) if len(safe) else 0.0, len(safe)


def generate(name, folder, seeds):
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if attempt(name, seed, folder):
            return
    raise SystemExit(f"{name}: no seed of {seeds} leaves every choice clear")


def differences(old, new):
    """What of two folders of one configuration differs; logits and margins may by rounding."""
    if sorted(p.name for p in old.iterdir()) != sorted(p.name for p in new.iterdir()):
        return ["the files"]
    found = []
    for path in sorted(new.iterdir()):
        before = old / path.name
        if path.suffix == ".safetensors":
            a, b = load_file(before), load_file(path)
            if a.keys() != b.keys() or any(
                not torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a
            ):
                found.append(path.name)
        elif path.suffix == ".npy":
            if relative(np.load(path), np.load(before)) > CROSS_CHECK:
                found.append(path.name)
        elif path.name == "golden.json":
            a, b = json.loads(before.read_text()), json.loads(path.read_text())
            found += [
                f"golden.json {key}" for key in ("name", "seed", "prompts", "greedy") if a[key] != b[key]
            ]
        elif before.read_text() != path.read_text():
            found.append(path.name)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "data")
    parser.add_argument("--only", choices=CONFIGURATIONS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bad = False
    for name in [args.only] if args.only else CONFIGURATIONS:
        folder = args.out / name
        if args.bf16:
            median, worst, safe, tokens = bf16_distance(name, folder)
            print(
                f"{name:22} median {median:.1e}  worst {worst:.1e}  worst of the first {tokens:3} tokens {safe:.1e}",
                flush=True,
            )
        elif args.check:
            with tempfile.TemporaryDirectory() as fresh:
                fresh = pathlib.Path(fresh) / name
                generate(name, fresh, [json.loads((folder / "golden.json").read_text())["seed"]])
                found = differences(folder, fresh)
            bad |= bool(found)
            print(f"{name:22} {'same' if not found else 'DIFFERENT: ' + ', '.join(found)}", flush=True)
        else:
            generate(name, folder, range(200))
            g = json.loads((folder / "golden.json").read_text())
            size = sum(p.stat().st_size for p in folder.iterdir()) / 1e3
            print(
                f"{name:22} {size:5.0f} KB  seed {g['seed']:3}  largest logit {g['max_abs_logit']:5.1f}  greedy lead "
                f"{g['greedy_min_margin']:.3f}  distinct {len(set(g['greedy'])):2}  cross-check {g['cross_check']:.1e}",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
