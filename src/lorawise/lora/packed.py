"""Frozen linear layers kept in 4 or 8 bits, made whole for the time of a product and never kept so.

    y = x·Wᵀ + b        dx = dy·W        W (out, in) = unpack(), in the compute dtype

    nf4   w = level · m        two 4-bit levels a byte, one scale m for each flat block of 64 (QLoRA, arXiv 2305.14314);
                               double quantisation: m = code · M + mean, 8 bits each, one M in fp32 for 256 of them
    int8  w = q · m_row / 127  one byte a weight, one scale a row (LLM.int8, arXiv 2208.07339; x is not rounded)

The arithmetic is bitsandbytes' own operations; nothing here imports it, for whoever made the layer has. Its CPU kernel
(0.50.2) starts a block anew with every row, though the bits were packed across rows: where a row is no whole number of
blocks its values are wrong (by 0.37 of a 32-wide weight's norm), so such a weight is unpacked as one long row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NF4_BLOCK = 64
SCALES_BLOCK = 256


class PackedLinear(nn.Linear):
    """Abstract. `weight` holds bits, frozen; `in_features`, `out_features` are those of the layer it stands for.

    Backward keeps neither x nor W: the input's gradient needs W alone, which is unpacked again.

    original  gives W as it was before it was packed, for as long as it is set: to measure what packing lost
    """

    original: Callable[[], Tensor] | None = None

    def __init__(
        self, in_features: int, out_features: int, *, bits: Tensor, bias: Tensor | None, compute_dtype: torch.dtype
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw a weight of full size
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = compute_dtype
        self.weight = nn.Parameter(bits, requires_grad=False)
        offset = None if bias is None else nn.Parameter(bias.detach().to(compute_dtype), requires_grad=False)
        self.register_parameter("bias", offset)

    def unpack(self) -> Tensor:
        """W (out, in) in the compute dtype, made anew; outside autograd."""
        with torch.no_grad():
            return self._unpacked() if self.original is None else self.original()

    def _unpacked(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _FrozenProduct.apply(x.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, compute_dtype={self.compute_dtype}"


class _FrozenProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.unpack(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        return (dy @ ctx.layer.unpack() if ctx.needs_input_grad[0] else None), None


class Nf4Linear(PackedLinear):
    """scales (blocks,): fp32, or uint8 with `scales_code` (256,), `scales_scale` (blocks / 256,), `scales_mean` ()."""

    scales: Tensor
    scales_code: Tensor | None
    scales_scale: Tensor | None
    scales_mean: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: Tensor,
        bias: Tensor | None,
        compute_dtype: torch.dtype,
        scales: Tensor,
        scales_code: Tensor | None = None,
        scales_scale: Tensor | None = None,
        scales_mean: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bits=bits, bias=bias, compute_dtype=compute_dtype)
        self.register_buffer("scales", scales)
        self.register_buffer("scales_code", scales_code)
        self.register_buffer("scales_scale", scales_scale)
        self.register_buffer("scales_mean", scales_mean)

    def _unpacked(self) -> Tensor:
        scales = self.scales
        if self.scales_code is not None:
            scales = torch.ops.bitsandbytes.dequantize_blockwise(
                scales, self.scales_scale, self.scales_code, SCALES_BLOCK, torch.float32
            )
            scales += self.scales_mean
        rows = self.out_features if self.in_features % NF4_BLOCK == 0 else 1
        shape = (rows, self.out_features * self.in_features // rows)
        whole: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            self.weight, scales, NF4_BLOCK, "nf4", shape, self.compute_dtype
        )
        return whole.view(self.out_features, self.in_features)


class Int8Linear(PackedLinear):
    """scales (out,) fp32: the largest magnitude of each row."""

    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: Tensor,
        bias: Tensor | None,
        compute_dtype: torch.dtype,
        scales: Tensor,
    ) -> None:
        super().__init__(in_features, out_features, bits=bits, bias=bias, compute_dtype=compute_dtype)
        self.register_buffer("scales", scales)

    def _unpacked(self) -> Tensor:
        whole: Tensor = torch.ops.bitsandbytes.int8_vectorwise_dequant(self.weight, self.scales)
        return whole.to(self.compute_dtype)
