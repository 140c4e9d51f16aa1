#!/usr/bin/env python3
"""Makes the golden data of gguf_*test.cpp, in gguf_data/. Needs numpy, torch, safetensors, the gguf package and,
for the models, a checkout of llama.cpp, whose own converter writes them:

    python tests/runtime/checkpoint/gguf_generate.py blocks
    python tests/runtime/checkpoint/gguf_generate.py models --llama-cpp DIR
    python tests/runtime/checkpoint/gguf_generate.py seeds

blocks: TYPE.bin is n blocks of that type and then the n * block values, float32, that gguf.quants.dequantize
    makes of them. Scales are zero, negative zero, denormal, negative, the largest, and random ones.
models: NAME.gguf from the checkpoint of tests/golden/data/NAME, whose golden logits hold for it since it stores
    the same values; v2-lite is quantised to Q8_0 where its rows are whole blocks, and has logits of its own
    (tests/golden/reference.py on the dequantised weights, float64) for prompt 1.
seeds: tests/fuzz/corpus/gguf, files of a few KB with every part of the format and many types.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "gguf_data"
GOLDEN = HERE.parents[1] / "golden"

# Byte offsets of the float16 numbers of a block.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
}
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0xBC00]  # 0, -0, denormals, +-65504, -1


def finite_halves(rng, count):
    bits = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0x83FF, bits)


def blocks():
    import gguf

    for index, (name, offsets) in enumerate(sorted(SCALES.items())):
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = 10 if elements == 256 else 24
        rng = np.random.default_rng(1000 + index)
        data = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for place, offset in enumerate(offsets):
            halves = finite_halves(rng, count)
            for i, bits in enumerate(SPECIAL):
                halves[(i + 2 * place) % count] = bits
            data[:, offset : offset + 2] = halves.view(np.uint8).reshape(count, 2)
        save(name, data, gguf.quants.dequantize(data, kind))
    for name, kind in (("F16", gguf.GGMLQuantizationType.F16), ("BF16", gguf.GGMLQuantizationType.BF16)):
        rng = np.random.default_rng(len(name))
        bits = finite_halves(rng, 64) if name == "F16" else rng.integers(0, 0x7F80, 64, dtype=np.uint16)
        bits[: len(SPECIAL)] = SPECIAL if name == "F16" else [b & 0xFF7F for b in SPECIAL]
        save(name, bits.reshape(1, -1).view(np.uint8), gguf.quants.dequantize(bits.reshape(1, -1).view(np.uint8), kind))


def save(name, data, values):
    assert np.isfinite(values).all() and values.dtype == np.float32
    (OUT / f"{name}.bin").write_bytes(data.tobytes() + values.tobytes())
    print(f"{name}.bin: {data.nbytes} bytes of blocks, {values.size} values")


# name -> what llama.cpp calls the types that its converter should write
MODELS = {"llama3": "MOSTLY_BF16", "qwen2-tied": "MOSTLY_BF16", "v3-negative-bias": "MOSTLY_BF16", "v2-lite": "MOSTLY_Q8_0"}


def convert(llama_cpp, name, file_type):
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import ModelBase

    folder, file = GOLDEN / "data" / name, OUT / f"{name}.gguf"
    config = json.loads((folder / "config.json").read_text())
    base = get_model_class(config["architectures"][0])

    class Model(base):
        model_arch = base.model_arch

        def set_vocab(self):
            # The checkpoints have no tokenizer: letters of the byte alphabet, and added tokens.
            size = config["vocab_size"]
            tokens = ["<s>", "</s>"] + [chr(c) for c in range(33, 127)] + ["ab", "abc"]
            tokens += [f"<{i}>" for i in range(len(tokens), size)]
            types = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * 96
            types += [gguf.TokenType.UNUSED] * (size - len(types))
            self.gguf_writer.add_tokenizer_model("gpt2")
            self.gguf_writer.add_tokenizer_pre({"llama": "llama-bpe", "qwen2": "qwen2"}.get(config["model_type"], "deepseek-v3"))
            self.gguf_writer.add_token_list(tokens)
            self.gguf_writer.add_token_types(types)
            self.gguf_writer.add_token_merges(["a b", "ab c"])
            self.gguf_writer.add_bos_token_id(0)
            self.gguf_writer.add_eos_token_id(1)

    with torch.inference_mode():
        Model(folder, gguf.LlamaFileType[file_type], file, hparams=ModelBase.load_hparams(folder, False)).write()
    print(f"{file.name}: {file.stat().st_size} bytes")
    return file, config


def models(llama_cpp):
    for name, file_type in MODELS.items():
        file, config = convert(llama_cpp, name, file_type)
        if file_type == "MOSTLY_Q8_0":
            quantised_logits(name, file, config)


def quantised_logits(name, file, config):
    """Golden logits for the values of the file: those of the checkpoint, quantised as the file's types say."""
    import gguf

    sys.path.insert(0, str(GOLDEN))
    import reference

    types = {t.name: t.tensor_type for t in gguf.GGUFReader(file).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, config["num_hidden_layers"])
    _, weights = reference.load(GOLDEN / "data" / name)
    for key, values in weights.items():
        parts = key.split(".")
        if "experts" in parts:  # stacked in the file
            key_of_file = names.get_name(".".join(parts[:5] + parts[6:]), try_suffixes=(".weight",))
        elif "kv_b_proj" in parts:  # in two parts; rows of v_b and columns of k_b are no whole blocks
            key_of_file = names.get_name(key.replace("kv_b_proj", "k_b_proj"), try_suffixes=(".weight", ".bias"))
        else:
            key_of_file = names.get_name(key, try_suffixes=(".weight", ".bias"))
        kind = types[key_of_file]
        quantised = gguf.quants.quantize(values.astype(np.float32), kind)
        weights[key] = gguf.quants.dequantize(quantised, kind).reshape(values.shape).astype(np.float64)
    golden = json.loads((GOLDEN / "data" / name / "golden.json").read_text())
    logits = reference.forward(config, weights, golden["prompts"][1])
    logits = logits[0] if isinstance(logits, tuple) else logits
    np.save(OUT / f"{name}.logits_1.npy", np.asarray(logits, dtype=np.float32))
    change = np.abs(logits - np.load(GOLDEN / "data" / name / "logits_1.npy")).max()
    print(f"{name}: Q8_0 moves logits by {change / golden['max_abs_logit']:.1e} of the largest")


def seeds():
    import gguf

    folder = HERE.parents[1] / "fuzz" / "corpus" / "gguf"
    folder.mkdir(exist_ok=True)
    kinds = gguf.GGMLQuantizationType
    for architecture, pre in (("llama", "llama-bpe"), ("qwen2", "qwen2"), ("deepseek2", "deepseek-llm")):
        writer = gguf.GGUFWriter(folder / architecture, architecture)
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(32)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(8)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["<s>", "</s>", "a", "b", "ab", "1", "2", "[PAD]"])
        writer.add_token_types([3, 4, 1, 1, 1, 1, 1, 5])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
        rng = np.random.default_rng(0)

        def add(name, shape, kind=kinds.F32):
            if kind is kinds.F32:
                return writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = rng.integers(0, 60, (*shape[:-1], shape[-1] // block * size), dtype=np.uint8)
            writer.add_tensor(name, data, raw_dtype=kind)

        add("token_embd.weight", (8, 32), kinds.Q8_0)
        add("output_norm.weight", (32,))
        add("blk.0.attn_norm.weight", (32,))
        add("blk.0.ffn_norm.weight", (32,))
        add("blk.0.attn_output.weight", (32, 32), kinds.Q5_1)
        if architecture == "deepseek2":
            writer.add_rope_dimension_count(4)
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(4)
            writer.add_rope_scaling_orig_ctx_len(16)
            writer.add_rope_scaling_yarn_log_mul(0.0707)
            writer.add_kv_lora_rank(32)
            writer.add_key_length(36)
            writer.add_value_length(32)
            writer.add_key_length_mla(20)
            writer.add_value_length_mla(16)
            writer.add_expert_count(2)
            writer.add_expert_used_count(1)
            writer.add_expert_shared_count(1)
            writer.add_expert_feed_forward_length(32)
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
            writer.add_expert_weights_scale(2.5)
            writer.add_leading_dense_block_count(0)
            add("blk.0.attn_q.weight", (40, 32), kinds.Q4_0)
            add("blk.0.attn_kv_a_mqa.weight", (36, 32), kinds.Q4_1)
            add("blk.0.attn_kv_a_norm.weight", (32,))
            add("blk.0.attn_k_b.weight", (2, 32, 16))
            add("blk.0.attn_v_b.weight", (2, 16, 32), kinds.IQ4_NL)
            add("blk.0.ffn_gate_inp.weight", (2, 32))
            add("blk.0.exp_probs_b.bias", (2,))
            for part in ("gate", "up", "down"):
                add(f"blk.0.ffn_{part}_exps.weight", (2, 32, 32), kinds.Q5_0)
                add(f"blk.0.ffn_{part}_shexp.weight", (32, 32), kinds.Q8_0)
        else:
            writer.add_head_count_kv(1)
            for part, rows, kind in (("q", 32, kinds.Q4_0), ("k", 16, kinds.Q4_1), ("v", 16, kinds.IQ4_NL)):
                add(f"blk.0.attn_{part}.weight", (rows, 32), kind)
                if architecture == "qwen2":
                    add(f"blk.0.attn_{part}.bias", (rows,))
            for part in ("gate", "up", "down"):
                add(f"blk.0.ffn_{part}.weight", (32, 32), kinds.Q5_0)
            if architecture == "llama":
                add("rope_freqs.weight", (8,))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    # One block of each K type, which no config asks for.
    writer = gguf.GGUFWriter(folder / "k_types", "llama")
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        size = gguf.GGML_QUANT_SIZES[kinds[name]][1]
        writer.add_tensor(name, np.full((1, size), 7, dtype=np.uint8), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["blocks", "models", "seeds"])
    parser.add_argument("--llama-cpp", type=pathlib.Path)
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    if arguments.what == "models":
        models(arguments.llama_cpp)
    else:
        {"blocks": blocks, "seeds": seeds}[arguments.what]()


if __name__ == "__main__":
    main()
