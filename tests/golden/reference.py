"""The models in float64 numpy: a second opinion on Hugging Face's logits, and the maths on a few pages.

Written from the papers and from DeepSeek's published code. Where implementations differ, this is what real
checkpoints expect (README.md lists the differences). Slow and plain on purpose: whole prompt, no cache.
"""

import json
import math
import pathlib

import numpy as np
import torch
from safetensors.torch import load_file

# DeepSeek's modeling code builds q_a_layernorm and kv_a_layernorm with the class default, not with rms_norm_eps.
LATENT_NORM_EPS = 1e-6
FP8_BLOCK = 128


def load(folder: pathlib.Path) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and every tensor as float64, FP8 blocks multiplied out."""
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else ["model.safetensors"]
    )
    raw = {}
    for name in names:
        raw |= load_file(folder / name)
    return config, dequantize(raw)


def dequantize(raw: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    out = {}
    for name, tensor in raw.items():
        if name.endswith("_scale_inv"):
            continue
        value = tensor.double().numpy()
        if tensor.dtype == torch.float8_e4m3fn:
            scale = raw[name + "_scale_inv"].double().numpy()  # [ceil(rows / 128), ceil(columns / 128)]
            scale = scale.repeat(FP8_BLOCK, axis=0).repeat(FP8_BLOCK, axis=1)
            value = value * scale[: value.shape[0], : value.shape[1]]
        out[name] = value
    return out


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swiglu(x, w, prefix):
    gate = x @ w[prefix + "gate_proj.weight"].T
    return (gate * sigmoid(gate) * (x @ w[prefix + "up_proj.weight"].T)) @ w[prefix + "down_proj.weight"].T


# Rotary embedding -----------------------------------------------------------------------------------------


def yarn_mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_tables(config, dim, positions):
    """cos and sin, [tokens, dim / 2]."""
    theta, scaling = config["rope_theta"], config.get("rope_scaling")
    freq = theta ** (-np.arange(0, dim, 2) / dim)
    magnitude = 1.0
    kind = scaling and scaling.get("rope_type", scaling.get("type"))
    if kind == "yarn":
        factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

        def dim_that_turns(rotations):  # the dimension that makes so many turns within the original context
            return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(dim_that_turns(scaling["beta_fast"])), 0)
        high = min(math.ceil(dim_that_turns(scaling["beta_slow"])), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
        freq = freq / factor * ramp + freq * (1 - ramp)
        magnitude = yarn_mscale(factor, scaling["mscale"]) / yarn_mscale(factor, scaling["mscale_all_dim"])
    elif kind == "llama3":
        factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * freq / (2 * math.pi)  # within the original context
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        freq = freq / factor * (1 - smooth) + freq * smooth
    elif kind is not None:
        raise ValueError(f"rope type {kind}")
    angle = positions[:, None] * freq
    return np.cos(angle) * magnitude, np.sin(angle) * magnitude


def rotate_interleaved(x, cos, sin):  # DeepSeek: pairs (0, 1), (2, 3), ...
    out = np.empty_like(x)
    a, b = x[..., 0::2], x[..., 1::2]
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
    return out


def rotate_half(x, cos, sin):  # Llama, Qwen2: pairs (i, i + dim / 2)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


# Attention ------------------------------------------------------------------------------------------------


def attend(q, k, v, scale):
    """q, k [heads, tokens, dim], v [heads, tokens, v_dim] -> [tokens, heads * v_dim], causal."""
    scores = q @ k.transpose(0, 2, 1) * scale
    tokens = q.shape[1]
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(tokens, -1)


def mla(config, w, p, x, positions):
    """Multi-head latent attention in its expanded form. The cache would be [c_kv, k_pe] of each token."""
    tokens, heads = x.shape[0], config["num_attention_heads"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    rank, v_dim = config["kv_lora_rank"], config["v_head_dim"]
    if config["q_lora_rank"] is None:
        q = x @ w[p + "q_proj.weight"].T
    else:
        c_q = rms_norm(x @ w[p + "q_a_proj.weight"].T, w[p + "q_a_layernorm.weight"], LATENT_NORM_EPS)
        q = c_q @ w[p + "q_b_proj.weight"].T
    q = q.reshape(tokens, heads, nope + rope).transpose(1, 0, 2)
    kv_a = x @ w[p + "kv_a_proj_with_mqa.weight"].T
    c_kv = rms_norm(kv_a[:, :rank], w[p + "kv_a_layernorm.weight"], LATENT_NORM_EPS)
    cos, sin = rope_tables(config, rope, positions)
    q_pe = rotate_interleaved(q[..., nope:], cos, sin)
    k_pe = rotate_interleaved(kv_a[:, rank:], cos, sin)  # one for all heads
    kv = (c_kv @ w[p + "kv_b_proj.weight"].T).reshape(tokens, heads, nope + v_dim).transpose(1, 0, 2)
    k = np.concatenate([kv[..., :nope], np.broadcast_to(k_pe, (heads, tokens, rope))], axis=-1)
    q = np.concatenate([q[..., :nope], q_pe], axis=-1)
    scale = (nope + rope) ** -0.5
    scaling = config.get("rope_scaling")
    if scaling:  # YaRN sharpens the softmax too, for all dimensions and at every length
        scale *= yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return attend(q, k, kv[..., nope:], scale) @ w[p + "o_proj.weight"].T


def gqa(config, w, p, x, positions):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads

    def project(name, count):
        y = x @ w[p + name + ".weight"].T + w.get(p + name + ".bias", 0.0)
        return y.reshape(x.shape[0], count, dim).transpose(1, 0, 2)

    cos, sin = rope_tables(config, dim, positions)
    q = rotate_half(project("q_proj", heads), cos, sin)
    k = rotate_half(project("k_proj", kv_heads), cos, sin).repeat(heads // kv_heads, axis=0)
    v = project("v_proj", kv_heads).repeat(heads // kv_heads, axis=0)
    return attend(q, k, v, dim**-0.5) @ w[p + "o_proj.weight"].T


# Experts --------------------------------------------------------------------------------------------------


def top(scores, k):
    return np.argsort(-scores, axis=-1, kind="stable")[:, :k]


def gap(scores, k):
    """How clear the choice of the k largest is: relative distance between the last in and the first out."""
    ordered = -np.sort(-scores, axis=-1)
    if k >= ordered.shape[1]:
        return np.full(len(scores), np.inf)
    a, b = ordered[:, k - 1], ordered[:, k]
    return np.where(np.isneginf(b), np.inf, (a - b) / np.maximum(np.abs(a), 1e-30))


def route(config, w, p, x, info):
    """Chosen experts [tokens, k] and their weights [tokens, k]."""
    method, k = config["topk_method"], config["num_experts_per_tok"]
    groups, topk_group = config["n_group"], config["topk_group"]
    logits = x @ w[p + "gate.weight"].T
    if method == "noaux_tc":
        scores = sigmoid(logits)
        choice = scores + w[p + "gate.e_score_correction_bias"]  # chooses, but does not weight
    else:
        scores = choice = softmax(logits)
    margin = np.full(len(x), np.inf)
    if method != "greedy":
        grouped = choice.reshape(len(x), groups, -1)
        if method == "noaux_tc":
            of_group = -np.sort(-grouped, axis=-1)[..., :2].sum(-1)
        else:  # group_limited_greedy
            of_group = grouped.max(-1)
        allowed = np.zeros((len(x), groups), bool)
        np.put_along_axis(allowed, top(of_group, topk_group), True, axis=1)
        allowed = allowed.repeat(grouped.shape[-1], axis=1)
        masked_with_zero = np.where(allowed, choice, 0.0)
        choice = np.where(allowed, choice, -np.inf)
        margin = gap(of_group, topk_group)
        same = np.sort(top(choice, k)) == np.sort(top(masked_with_zero, k))
        info["mask_value_matters"] = info.get("mask_value_matters", False) or not same.all()
    chosen = top(choice, k)
    margin = np.minimum(margin, gap(choice, k))
    info["router_margin"] = np.minimum(info.get("router_margin", np.inf), margin)
    weights = np.take_along_axis(scores, chosen, axis=1)
    if config["norm_topk_prob"] and k > 1:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        if method != "noaux_tc":
            return chosen, weights  # V2 scales only what it does not normalise; V3 always scales
    return chosen, weights * config["routed_scaling_factor"]


def moe(config, w, p, x, info):
    chosen, weights = route(config, w, p, x, info)
    out = swiglu(x, w, p + "shared_experts.")  # all shared experts are one MLP
    for expert in np.unique(chosen):
        token, slot = np.nonzero(chosen == expert)
        out[token] += weights[token, slot, None] * swiglu(x[token], w, f"{p}experts.{expert}.")
    return out


# Model ----------------------------------------------------------------------------------------------------


def layer(config, w, index, x, positions, info):
    p, eps = f"model.layers.{index}.", config["rms_norm_eps"]
    attention = mla if "kv_lora_rank" in config else gqa
    x = x + attention(
        config, w, p + "self_attn.", rms_norm(x, w[p + "input_layernorm.weight"], eps), positions
    )
    h = rms_norm(x, w[p + "post_attention_layernorm.weight"], eps)
    is_moe = "n_routed_experts" in config and index >= config["first_k_dense_replace"]
    return x + (moe(config, w, p + "mlp.", h, info) if is_moe else swiglu(h, w, p + "mlp."))


def forward(config, w, tokens, info=None):
    """Logits [tokens, vocab]. info receives router_margin [tokens], mask_value_matters and hidden."""
    info = {} if info is None else info
    x = w["model.embed_tokens.weight"][tokens]
    positions = np.arange(len(tokens))
    for index in range(config["num_hidden_layers"]):
        x = layer(config, w, index, x, positions, info)
    x = info["hidden"] = rms_norm(x, w["model.norm.weight"], config["rms_norm_eps"])
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return x @ head.T


def forward_mtp(config, w, tokens):
    """Logits [tokens - 1, vocab] of the MTP layer: row i reads the main model's hidden state of token i (after
    the final norm) and the embedding of token i + 1, and predicts token i + 2."""
    info = {}
    forward(config, w, tokens, info)
    index, eps = config["num_hidden_layers"], config["rms_norm_eps"]
    p = f"model.layers.{index}."
    embedding = rms_norm(w[p + "embed_tokens.weight"][tokens[1:]], w[p + "enorm.weight"], eps)
    hidden = rms_norm(info["hidden"][:-1], w[p + "hnorm.weight"], eps)
    x = np.concatenate([embedding, hidden], axis=-1) @ w[p + "eh_proj.weight"].T
    x = layer(config, w, index, x, np.arange(1, len(tokens)), {})
    return rms_norm(x, w[p + "shared_head.norm.weight"], eps) @ w[p + "shared_head.head.weight"].T
