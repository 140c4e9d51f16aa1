"""Writes quantized_data/: one matrix in each packed layout that is read, and what it decodes to.

    python3 tests/runtime/checkpoint/quantized_generate.py

Packing and decoding are written from the formats' own definitions (compressed-tensors' pack_to_int32,
AutoAWQ's WQLinear_GEMM, AutoGPTQ's QuantLinear), apart from the reader that they test.
Needs numpy and safetensors (with ml_dtypes' bfloat16 left out: scales are float16 or float32).
"""
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent / "quantized_data"
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word holds column AWQ_ORDER[i]


def pack(codes, bits, axis):
    """Unsigned codes along `axis`, the first in the lowest bits of an int32."""
    codes = np.moveaxis(codes.astype(np.uint32), axis, -1)
    per = 32 // bits
    pad = -codes.shape[-1] % per
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, pad)])
    words = np.zeros(codes.shape[:-1] + (codes.shape[-1] // per,), np.uint32)
    for i in range(per):
        words |= codes[..., i::per] << np.uint32(bits * i)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def pack_awq(codes):
    """[k, n] -> [k, n / 8]."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for i, column in enumerate(AWQ_ORDER):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def case(name, config, tensors, values):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}, indent=1) + "\n")
    np.save(folder / "values.npy", values.astype(np.float32))


def groups_in_any_order(seed, k, group):
    """The group of each column, as quantising columns by activation leaves it."""
    return np.random.default_rng(100 + seed).permutation(np.arange(k) // group).astype(np.int32)


def in_half(values):
    """What is out of order is held as float16."""
    return values.astype(np.float16).astype(np.float32)


def codes_and_groups(rng, n, k, bits, group, symmetric):
    """Unsigned codes [n, k], zeros [n, groups] (unsigned), scales [n, groups] float16, values."""
    groups = -(-k // group)
    codes = rng.integers(0, 2**bits, (n, k))
    zeros = np.full((n, groups), 2 ** (bits - 1)) if symmetric else rng.integers(0, 2**bits, (n, groups))
    scales = (rng.random((n, groups)) * 0.1 + 0.01).astype(np.float16)
    column_group = np.arange(k) // group
    values = (codes - zeros[:, column_group]) * scales.astype(np.float32)[:, column_group]
    return codes, zeros, scales, values


def compressed(name, seed, n, k, bits, group, symmetric, int8_zeros=False, any_order=False):
    rng = np.random.default_rng(seed)
    codes, zeros, scales, values = codes_and_groups(rng, n, k, bits, group or k, symmetric)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric,
               "strategy": "group" if group else "channel", "group_size": group or None,
               "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "actorder": None}
    tensors = {"w.weight_packed": pack(codes, bits, 1), "w.weight_scale": scales,
               "w.weight_shape": np.array([n, k], np.int64)}
    if any_order:
        weights["actorder"] = "group"
        column_group = tensors["w.weight_g_idx"] = groups_in_any_order(seed, k, group)
        values = in_half((codes - zeros[:, column_group]) * scales.astype(np.float32)[:, column_group])
    if not symmetric and int8_zeros:
        tensors["w.weight_zero_point"] = (zeros - 2 ** (bits - 1)).astype(np.int8)
    elif not symmetric:
        tensors["w.weight_zero_point"] = pack(zeros, bits, 0)
    case(name, {"quant_method": "compressed-tensors", "format": "pack-quantized",
                "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None,
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                              "input_activations": None, "output_activations": None}}},
         tensors, values)


def int_quantized(name, seed, n, k):
    rng = np.random.default_rng(seed)
    codes, zeros, scales, values = codes_and_groups(rng, n, k, 8, k, False)
    case(name, {"quant_method": "compressed-tensors", "format": "int-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                    "num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel"}}}},
         {"w.weight": (codes - 128).astype(np.int8), "w.weight_scale": scales,
          "w.weight_zero_point": (zeros - 128).astype(np.int8)}, values)


def e4m3(code):
    """The value of an e4m3 code."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(sign == 1, -magnitude, magnitude)


def float_quantized(name, seed, n, k, strategy):
    import struct
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 0x7f, (n, k)) | rng.integers(0, 2, (n, k)) << 7
    shape = {"tensor": (1,), "channel": (n, 1), "block": (-(-n // 16), -(-k // 32))}[strategy]
    scales = (rng.random(shape) + 0.5).astype(np.float32)
    if strategy == "block":
        spread = np.repeat(np.repeat(scales, 16, 0), 32, 1)[:n, :k]
    else:
        spread = np.broadcast_to(scales.reshape(-1, 1), (n, k))
    values = e4m3(codes).astype(np.float32) * spread
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    if strategy == "block":
        weights["block_structure"] = [16, 32]
    case(name, {"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                              "input_activations": {"num_bits": 8}}}}, {}, values)
    # safetensors' numpy binding has no float8: the file by hand.
    body = codes.astype(np.uint8).tobytes() + scales.tobytes()
    header = json.dumps({"w.weight": {"dtype": "F8_E4M3", "shape": [n, k], "data_offsets": [0, n * k]},
                         "w.weight_scale": {"dtype": "F32", "shape": list(shape),
                                            "data_offsets": [n * k, len(body)]}})
    header += " " * (-len(header) % 8)
    (HERE / name / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)


def awq(name, seed, n, k, group):
    rng = np.random.default_rng(seed)
    codes, zeros, scales, values = codes_and_groups(rng, n, k, 4, group if group > 0 else k, False)
    case(name, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True,
                "version": "gemm", "modules_to_not_convert": None},
         {"w.qweight": pack_awq(codes.T), "w.qzeros": pack_awq(zeros.T), "w.scales": scales.T}, values)


def gptq(name, seed, n, k, bits, group, symmetric, version=1, any_order=False):
    rng = np.random.default_rng(seed)
    codes, zeros, scales, values = codes_and_groups(rng, n, k, bits, group if group > 0 else k, symmetric)
    if version == 1 and not symmetric:
        # Zero points 1 to 2^bits are stored less 1.
        zeros = zeros + 1
        column_group = np.arange(k) // (group if group > 0 else k)
        values = (codes - zeros[:, column_group]) * scales.astype(np.float32)[:, column_group]
    group_of = (np.arange(k) // (group if group > 0 else k)).astype(np.int32)
    if any_order:
        group_of = groups_in_any_order(seed, k, group)
        values = in_half((codes - zeros[:, group_of]) * scales.astype(np.float32)[:, group_of])
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": any_order, "sym": symmetric,
              "damp_percent": 0.1, "true_sequential": True}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    stored = zeros - (1 if version == 1 else 0)
    case(name, config,
         {"w.qweight": pack(codes.T, bits, 0), "w.qzeros": pack(stored.T, bits, 1), "w.scales": scales.T,
          "w.g_idx": group_of}, values)


compressed("int4-g128", 1, 20, 256, 4, 128, True)
compressed("int4-g32-asym", 2, 20, 96, 4, 32, False)
compressed("int4-g64-asym-int8-zeros", 3, 12, 128, 4, 64, False, int8_zeros=True)
compressed("int4-channel", 4, 10, 150, 4, 0, True)
compressed("int4-g256", 5, 6, 512, 4, 256, False)
compressed("int8-channel", 6, 10, 90, 8, 0, True)
compressed("int8-g32-asym", 7, 18, 64, 8, 32, False)
int_quantized("int8-bytes", 8, 10, 70)
for s, strategy in enumerate(["tensor", "channel", "block"]):
    float_quantized("fp8-" + strategy, 9 + s, 40, 72, strategy)
awq("awq-g64", 12, 24, 192, 64)
awq("awq-row", 13, 16, 64, -1)
gptq("gptq-g32-asym", 14, 20, 128, 4, 32, False)
gptq("gptq-g128", 15, 12, 256, 4, 128, True)
gptq("gptq-8bit", 16, 14, 64, 8, 32, False)
gptq("gptq-v2-row", 17, 10, 48, 4, -1, False, version=2)
gptq("gptq-any-order", 18, 20, 128, 4, 32, False, any_order=True)
gptq("gptq-8bit-any-order", 19, 14, 96, 8, 32, True, any_order=True)
compressed("int4-any-order", 20, 18, 128, 4, 32, False, any_order=True)
