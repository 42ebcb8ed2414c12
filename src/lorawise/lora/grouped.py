"""y = x·Wₑᵀ + bₑ + s · Bₑ·Aₑ·x for rows sorted by expert e, low rank first: no expert's dense delta is ever built.

Shapes: x (S, in) sorted by expert, counts E row counts that sum to S, W (E, out, in), bias (E, out), A (E, r, in),
B (E, out, r), y (S, out). An expert that no row reached costs nothing, and its A and B get a zero gradient.

Saved for backward: x, u = x·Aₑᵀ (S, r), and A and sB in the compute dtype; with du = dy·(sBₑ):

    dAₑ = duᵀ·x        dBₑ = s·dyᵀ·u        dx = dy·Wₑ + du·Aₑ
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def grouped_lora_linear(
    x: Tensor, counts: Sequence[int], weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float
) -> Tensor:
    """The frozen experts' product plus the update; gradients reach x, A and B, the latter in the masters' dtype."""
    y: Tensor = _GroupedPlusLowRank.apply(x, A, B, weight, bias, tuple(counts), s)  # type: ignore[no-untyped-call]
    return y


class _GroupedPlusLowRank(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        counts: tuple[int, ...],
        s: float,
    ) -> Tensor:
        a, b = A.to(x.dtype), (B * s).to(x.dtype)
        y = x.new_empty(x.shape[0], weight.shape[1])
        u = x.new_empty(x.shape[0], A.shape[1])
        for e, rows in groups(counts):
            torch.mm(x[rows], weight[e].mT, out=y[rows])
            torch.mm(x[rows], a[e].mT, out=u[rows])
            y[rows].addmm_(u[rows], b[e].mT)
            if bias is not None:
                y[rows].add_(bias[e])
        ctx.save_for_backward(x, u, a, b, weight)
        ctx.counts, ctx.s, ctx.masters = counts, s, A.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, a, b, weight = ctx.saved_tensors
        wants_x, wants_a, wants_b = ctx.needs_input_grad[:3]
        dx = torch.empty_like(x) if wants_x else None
        dA = torch.zeros_like(a, dtype=ctx.masters) if wants_a else None
        dB = torch.zeros_like(b, dtype=ctx.masters) if wants_b else None
        for e, rows in groups(ctx.counts):
            du = dy[rows] @ b[e]
            if dA is not None:
                dA[e] = du.mT @ x[rows]
            if dB is not None:
                dB[e] = dy[rows].mT @ u[rows]
            if dx is not None:
                torch.mm(dy[rows], weight[e], out=dx[rows])
                dx[rows].addmm_(du, a[e])
        return dx, dA, dB if dB is None else dB.mul_(ctx.s), None, None, None, None


def groups(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) of the experts that some row reached."""
    start = 0
    for e, count in enumerate(counts):
        if count:
            yield e, slice(start, start + count)
        start += count
