"""DeepSeek's weight format: FP8 e4m3 with one float32 scale per block of 128 x 128."""

import contextlib

import torch
import torch.nn.functional as F

BLOCK = 128
FP8_MAX = 448.0  # largest finite e4m3 value


def quantise(weight):
    """weight: [..., rows, columns] -> (float8 of the same shape, scales [..., row_blocks, column_blocks])."""
    *batch, rows, columns = weight.shape
    row_blocks, column_blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = F.pad(weight.float(), (0, column_blocks * BLOCK - columns, 0, row_blocks * BLOCK - rows))
    blocks = padded.view(*batch, row_blocks, BLOCK, column_blocks, BLOCK)
    scale = blocks.abs().amax((-3, -1)).clamp(min=1e-12) / FP8_MAX
    scaled = (blocks / scale[..., :, None, :, None]).to(torch.float8_e4m3fn)
    return scaled.view(padded.shape)[..., :rows, :columns].contiguous(), scale


def dequantise(weight, scale):
    rows, columns = weight.shape[-2:]
    full = scale.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return weight.float() * full[..., :rows, :columns]


def is_quantised(name):
    """Which parameters (by the names of model.py) DeepSeek stores in FP8: the linear layers of the decoder layers."""
    if "experts_" in name:
        return True
    return name.endswith("_proj.weight") and "eh_proj" not in name or name.endswith("_with_mqa.weight")


def as_stored(name, value):
    """The value that a reader of the checkpoint gets back, in float32."""
    if not is_quantised(name):
        return value if "correction_bias" in name else value.bfloat16().float()
    if "experts_gate_up" in name:  # stored as two matrices
        count, both, hidden = value.shape
        return dequantise(*quantise(value.view(count, 2, both // 2, hidden))).view_as(value)
    return dequantise(*quantise(value))


@contextlib.contextmanager
def fake_quantised(model, enabled):
    """Inside, the parameters hold their stored values; afterwards their exact ones (gradients stay)."""
    if not enabled:
        yield
        return
    exact = {name: p.data for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.data = as_stored(name, p.data)
    try:
        yield
    finally:
        for name, p in model.named_parameters():
            p.data = exact[name]
