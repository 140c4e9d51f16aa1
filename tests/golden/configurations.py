"""The golden configurations: config.json of each, how it is stored, and what it is there for.

Fields and their spelling are those of the real checkpoints. Sizes are tiny and odd on purpose: head counts and
dimensions that 2, 3 and 4 ranks do not divide evenly, and that no SIMD width divides.
"""


def yarn(original=32, factor=40, mscale=1.0, mscale_all_dim=1.0, beta_fast=32):
    return {
        "beta_fast": beta_fast,
        "beta_slow": 1,
        "factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
        "original_max_position_embeddings": original,
        "type": "yarn",
    }


def deepseek(version, hidden, layers, heads, **more):
    auto = f"DeepseekV{version}"
    config = {
        "architectures": [f"{auto}ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"configuration_deepseek.{auto}Config",
            "AutoModel": f"modeling_deepseek.{auto}Model",
            "AutoModelForCausalLM": f"modeling_deepseek.{auto}ForCausalLM",
        },
        "aux_loss_alpha": 0.001,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 88,
        "kv_lora_rank": 24,
        "max_position_embeddings": 1280,
        "model_type": f"deepseek_v{version}",
        "moe_intermediate_size": 12,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 12,
        "n_shared_experts": 2 if version == 2 else 1,
        "norm_topk_prob": version == 3,
        "num_attention_heads": heads,
        "num_experts_per_tok": 3,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "pretraining_tp": 1,
        "q_lora_rank": 40,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0 if version == 2 else 2.5,
        "scoring_func": "softmax" if version == 2 else "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy" if version == 2 else "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "use_cache": True,
        "v_head_dim": 16,
        "vocab_size": 128,
    }
    if version == 3:
        config["num_nextn_predict_layers"] = 0
    return dict(sorted((config | more).items()))


FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


def qwen2(hidden, layers, heads, **more):
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 116,
        "max_position_embeddings": 4096,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 131,
    }
    return config | more


def llama(hidden, layers, heads, **more):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 116,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "use_cache": True,
        "vocab_size": 131,
    }
    return config | more


F16 = {"torch_dtype": "float16"}
F32 = {"torch_dtype": "float32"}

# name -> (config, number of files, what it covers)
CONFIGURATIONS = {
    "v2-lite": (
        deepseek(2, 64, 3, 4, q_lora_rank=None, rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707)),
        1,
        "V2-Lite: no q_lora, greedy softmax router, YaRN with mscale 0.707; 4 heads",
    ),
    "v2-grouped": (
        deepseek(
            2,
            72,
            2,
            6,
            topk_method="group_limited_greedy",
            n_group=4,
            topk_group=2,
            n_routed_experts=16,
            num_experts_per_tok=4,
            moe_intermediate_size=12,
            routed_scaling_factor=16.0,
            rope_scaling=yarn(original=64, factor=20, beta_fast=4),
        ),
        2,
        "V2: q_lora, group_limited_greedy, routed_scaling_factor 16, YaRN ramp over several dims; 6 heads; 2 shards",
    ),
    "v2-norm-topk": (
        deepseek(2, 64, 2, 4, q_lora_rank=None, norm_topk_prob=True, n_shared_experts=1) | F16,
        1,
        "V2 with norm_topk_prob (Hugging Face's gate corrected, see below), no YaRN; F16",
    ),
    "v2-mscale-tied": (
        deepseek(
            2,
            50,
            2,
            5,
            rope_scaling=yarn(mscale=1.0, mscale_all_dim=0.6),
            tie_word_embeddings=True,
            n_routed_experts=8,
            moe_intermediate_size=12,
            intermediate_size=72,
        )
        | F32,
        1,
        "mscale unlike mscale_all_dim, so that the tables are scaled too; tied embeddings; 5 heads; F32",
    ),
    "v3": (
        deepseek(
            3,
            64,
            3,
            4,
            n_group=4,
            topk_group=2,
            n_routed_experts=16,
            num_experts_per_tok=4,
            moe_intermediate_size=12,
            rope_scaling=yarn(),
            num_nextn_predict_layers=1,
        ),
        3,
        "V3 whole: q_lora, YaRN, noaux_tc with groups and bias, MTP layer in the checkpoint; 4 heads; 3 shards",
    ),
    "v3-plain": (
        deepseek(3, 72, 2, 6, q_lora_rank=None, n_group=3, topk_group=2, tie_word_embeddings=True),
        1,
        "V3 without q_lora and YaRN, 3 groups, tied embeddings, no MTP; 6 heads",
    ),
    "v3-no-norm": (
        deepseek(
            3,
            60,
            2,
            5,
            norm_topk_prob=False,
            routed_scaling_factor=1.5,
            first_k_dense_replace=0,
            n_shared_experts=2,
            n_routed_experts=10,
        )
        | F16,
        1,
        "V3 without normalised weights, one group, two shared experts, no dense layer; 10 experts, 5 heads; F16",
    ),
    "v3-negative-bias": (
        deepseek(
            3,
            48,
            2,
            4,
            n_group=4,
            topk_group=2,
            n_routed_experts=16,
            num_experts_per_tok=4,
            moe_intermediate_size=12,
        ),
        1,
        "every bias far below zero: groups that are not allowed must be masked with -inf, not 0",
    ),
    "v3-whole-groups": (
        deepseek(
            3,
            48,
            2,
            4,
            n_group=4,
            topk_group=2,
            n_routed_experts=8,
            num_experts_per_tok=4,
            moe_intermediate_size=12,
            first_k_dense_replace=2,
            num_hidden_layers=3,
            rope_scaling=yarn(factor=1),
        ),
        1,
        "as many experts per token as the allowed groups hold, two dense layers, YaRN factor 1 (does nothing)",
    ),
    "v3-fp8": (
        deepseek(
            3,
            144,
            2,
            6,
            q_lora_rank=72,
            kv_lora_rank=48,
            qk_nope_head_dim=24,
            qk_rope_head_dim=16,
            v_head_dim=24,
            intermediate_size=176,
            moe_intermediate_size=24,
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_group=2,
            topk_group=1,
            rope_scaling=yarn(),
            num_nextn_predict_layers=1,
            quantization_config=FP8,
        ),
        3,
        "FP8 blocks, no dim a multiple of 128, head ranges that begin inside a block; YaRN, MTP layer; 6 heads; 3 shards",
    ),
    "v3-fp8-wide-experts": (
        deepseek(
            3,
            132,
            2,
            5,
            q_lora_rank=None,
            kv_lora_rank=40,
            qk_nope_head_dim=20,
            qk_rope_head_dim=8,
            v_head_dim=28,
            intermediate_size=136,
            moe_intermediate_size=136,
            n_routed_experts=4,
            num_experts_per_tok=2,
            quantization_config=FP8,
        ),
        1,
        "FP8 experts and shared expert of 136 columns, a partial second block of 8; no q_lora; 5 heads",
    ),
    "qwen2-tied": (
        qwen2(84, 2, 6, tie_word_embeddings=True),
        1,
        "Qwen2 (R1 distill 1.5B): qkv bias, tied embeddings, 6 heads on 2 kv heads",
    ),
    "qwen2": (
        qwen2(64, 3, 4, rope_theta=1000000.0, rms_norm_eps=1e-05) | F16,
        2,
        "Qwen2 (R1 distill 14B, 32B): rope_theta 1e6, untied, 4 heads; F16; 2 shards",
    ),
    "llama3": (
        llama(84, 2, 6, eos_token_id=[1, 2, 3]),
        1,
        "Llama 3.1 (R1 distill 8B, 70B): llama3 rope scaling, prompt past the original context; 6 heads on 2 kv heads",
    ),
    "llama-plain": (
        llama(
            48,
            2,
            4,
            rope_scaling=None,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            head_dim=24,
            num_key_value_heads=4,
            intermediate_size=88,
        )
        | F32,
        1,
        "Llama without scaling, tied, head_dim unlike hidden / heads, as many kv heads as heads; F32",
    ),
}
