"""Packed layers over known weights, as bitsandbytes quantises them.

The oracle is bitsandbytes' reference in plain torch: its CPU kernel is wrong for rows that are no whole blocks.
"""

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from torch import Tensor

from lorawise.lora.packed import Int8Linear, Nf4Linear, PackedLinear

FORMS = ("nf4", "nf4-double", "int8")


def packed_linear(
    form: str,
    out: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    seed: int = 0,
    scale: float = 1.0,
) -> tuple[PackedLinear, Tensor]:
    """A packed layer and the whole weight that bitsandbytes itself makes of the same bits."""
    generator = torch.Generator().manual_seed(seed)
    weight = (scale * torch.randn(out, width, generator=generator)).to(dtype)
    offset = torch.randn(out, generator=generator) if bias else None
    if form == "int8":
        bits, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        whole = torch.ops.bitsandbytes.int8_vectorwise_dequant(bits, scales).to(dtype)
        return Int8Linear(width, out, bits=bits, bias=offset, compute_dtype=dtype, scales=scales), whole
    bits, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=form == "nf4-double")
    second = {}
    if state.nested:
        second = {
            "scales_code": state.state2.code,
            "scales_scale": state.state2.absmax,
            "scales_mean": state.offset,
        }
    layer = Nf4Linear(width, out, bits=bits, bias=offset, compute_dtype=dtype, scales=state.absmax, **second)
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return layer, _dequantize_4bit_compute(bits.reshape(-1), scales, state.code, 64, weight.shape, dtype)
