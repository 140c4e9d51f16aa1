"""DeepSeek-V3 in plain PyTorch, small enough to train on a CPU. Parameter names are the checkpoint's.

The batch is a list of rectangles [batch, length] of right-padded dialogues. Everything but attention works
on all their tokens laid end to end, x: [num_tokens, hidden], so padding and launch overhead stay small.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_lora_rank": 64,
    "max_position_embeddings": 2048,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 8,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 512,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 32,
    "vocab_size": 1536,
}


class Config:
    def __init__(self, values):
        self.__dict__.update(values)


def yarn_inverse_frequencies(config):
    """YaRN: pairs that turn often keep their frequency, slow ones are stretched, a ramp in between."""
    dim, base, scaling = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    original = scaling["original_max_position_embeddings"]

    def pair_of(rotations):  # index of the pair that turns this often within the original context
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(scaling["beta_fast"])), 0)
    high = min(math.ceil(pair_of(scaling["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies = base ** (-torch.arange(0, dim, 2).float() / dim)
    return frequencies / scaling["factor"] * ramp + frequencies * (1 - ramp)


def yarn_mscale(factor, mscale):
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        heads, self.nope, self.rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        self.heads, self.v_dim, self.latent = heads, config.v_head_dim, config.kv_lora_rank
        self.q_a_proj = linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = Norm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = linear(config.q_lora_rank, heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(config.hidden_size, config.kv_lora_rank + self.rope)
        self.kv_a_layernorm = Norm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = linear(config.kv_lora_rank, heads * (self.nope + self.v_dim))
        self.o_proj = linear(heads * self.v_dim, config.hidden_size)
        mscale = yarn_mscale(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"])
        self.scale = (self.nope + self.rope) ** -0.5 * mscale**2

    def rotate(self, x, rotation):
        """x: [num_tokens, heads, rope]; pairs are neighbours (x0, x1), (x2, x3), as DeepSeek stores them."""
        cos, sin = rotation
        even, odd = x[..., 0::2], x[..., 1::2]
        # Both halves are permuted alike for queries and keys, so their dot product does not change.
        return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)

    def forward(self, x, rotation, shapes):
        tokens = x.shape[0]
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(tokens, self.heads, -1)
        q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.latent, self.rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(tokens, self.heads, -1)
        k_nope, v = kv.split([self.nope, self.v_dim], dim=-1)
        k_rope = self.rotate(k_rope.unsqueeze(1), rotation).expand(-1, self.heads, -1)
        q = torch.cat([q_nope, self.rotate(q_rope, rotation)], dim=-1) * self.scale
        k = torch.cat([k_nope, k_rope], dim=-1)
        mixed, start = [], 0
        for batch, length in shapes:
            part = slice(start, start + batch * length)
            start += batch * length
            # [batch, heads, length, dim]
            qb, kb, vb = (t[part].view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
            scores = qb @ kb.transpose(-1, -2)
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(future, float("-inf")).softmax(-1)
            mixed.append((weights @ vb).transpose(1, 2).reshape(batch * length, -1))
        return self.o_proj(torch.cat(mixed))


class Mlp(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, intermediate), linear(hidden, intermediate)
        self.down_proj = linear(intermediate, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """noaux_tc: the bias chooses experts (and groups), the unbiased sigmoid scores weigh them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.load = None  # tokens per expert of the last forward, for the bias update

    def forward(self, x):
        c = self.config
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        with torch.no_grad():
            choice = scores + self.e_score_correction_bias
            groups = choice.view(-1, c.n_group, c.n_routed_experts // c.n_group)
            best = groups.topk(2, dim=-1)[0].sum(-1).topk(c.topk_group, dim=-1)[1]
            allowed = torch.zeros(len(x), c.n_group, dtype=torch.bool).scatter_(1, best, True)
            choice = groups.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(1)
            experts = choice.topk(c.num_experts_per_tok, dim=-1)[1]
            self.load = torch.bincount(experts.flatten(), minlength=c.n_routed_experts)
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scaling_factor
        return weights, experts


class Moe(nn.Module):
    """Routed experts are held stacked for speed; export.py writes them as experts.<i>.<name>."""

    def __init__(self, config):
        super().__init__()
        count, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.inner = inner
        self.gate = Gate(config)
        self.experts_gate_up = nn.Parameter(torch.empty(count, 2 * inner, hidden))
        self.experts_down = nn.Parameter(torch.empty(count, hidden, inner))
        self.shared_experts = Mlp(hidden, inner * config.n_shared_experts)

    def forward(self, x):
        weights, experts = self.gate(x)
        top_k = experts.shape[1]
        order = experts.flatten().argsort()
        token = order // top_k
        pieces = x[token].split(self.gate.load.tolist())
        inner = torch.cat([F.linear(p, w) for p, w in zip(pieces, self.experts_gate_up.unbind())])
        inner = F.silu(inner[:, : self.inner]) * inner[:, self.inner :] * weights.flatten()[order].unsqueeze(1)
        pieces = inner.split(self.gate.load.tolist())
        outputs = torch.cat([F.linear(p, w) for p, w in zip(pieces, self.experts_down.unbind())])
        return self.shared_experts(x).index_add(0, token, outputs)


class Layer(nn.Module):
    def __init__(self, config, dense):
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size) if dense else Moe(config)

    def forward(self, x, rotation, shapes):
        x = x + self.self_attn(self.input_layernorm(x), rotation, shapes)
        return x + self.mlp(self.post_attention_layernorm(x))


class Mtp(Layer):
    """Predicts the token after next from the final hidden state and the embedding of the next token."""

    def __init__(self, config):
        super().__init__(config, dense=False)
        self.enorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head_norm = Norm(config.hidden_size, config.rms_norm_eps)


class Model(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.config = config = config or Config(CONFIG)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, dense=i < config.first_k_dense_replace) for i in range(config.num_hidden_layers)
        )
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.mtp = Mtp(config)
        self.register_buffer("frequencies", yarn_inverse_frequencies(config), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:  # variance-preserving; the norms start at one
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        nn.init.normal_(self.embed_tokens.weight, std=1.0)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def rotation(self, shapes):
        position = torch.cat([torch.arange(length).repeat(batch) for batch, length in shapes])
        angle = (position.float()[:, None] * self.frequencies)[:, None, :]
        return angle.cos(), angle.sin()

    def hidden(self, ids, shapes):
        """ids: [num_tokens] -> final normed hidden states [num_tokens, hidden]."""
        rotation = self.rotation(shapes)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, rotation, shapes)
        return self.norm(x)

    def mtp_hidden(self, hidden, next_ids, shapes):
        """hidden at position i and the token at i + 1 -> states whose logits predict the token at i + 2."""
        mtp = self.mtp
        joined = torch.cat([mtp.enorm(self.embed_tokens(next_ids)), mtp.hnorm(hidden)], dim=-1)
        return mtp.shared_head_norm(mtp(mtp.eh_proj(joined), self.rotation(shapes), shapes))

    def gates(self):
        return [layer.mlp.gate for layer in [*self.layers, self.mtp] if isinstance(layer.mlp, Moe)]
