"""y = base(x) + s · B·A·drop(x), low rank first, added in place, for one adapter or for m of them side by side.

Shapes: x (rows, …, in), y (rows, …, out), A (m, r, in), B (m, out, r), s a number or (m, 1, 1). With m > 1 adapter i
takes the i-th m-th of the leading dimension. With T tokens an adapter:

    u  = drop(x)·Aᵀ        (T, r)          y  = base(x) + u·(sB)ᵀ
    du = dy·(sB)           (T, r)          dA = duᵀ·drop(x)     dB = s·dyᵀ·u     dx = dy·W + drop'(du·A)

Saved for backward: x itself (no cast, no dropped copy; q, k and v share one), u, and A and sB in the compute dtype. Of
a packed layer W is made twice, once forward and once backward, for all adapters and the base together, and not saved.
Dropout masks are drawn a second time. Scaling is folded into B in the master's precision and rounded once; gradients
of A and B come back in the master's dtype. (Operand orders are the fastest of those measured in bf16 and fp32 on CPU.)
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorawise.lora.dropout import Masks
from lorawise.lora.packed import PackedLinear

Scale = float | Tensor
Weight = Tensor | PackedLinear  # (out, in) as it is, or the layer that unpacks it


def lora_linear(
    layer: nn.Module, weight: Weight, x: Tensor, A: Tensor, B: Tensor, s: Scale, masks: Masks | None
) -> Tensor:
    """The fast path over a frozen layer computing x·weightᵀ + bias; `weight` (out, in) gives x's gradient."""
    y: Tensor = _LinearPlusLowRank.apply(x, A, B, weight, layer, s, masks)  # type: ignore[no-untyped-call]
    return y


def add_lora(y: Tensor, x: Tensor, A: Tensor, B: Tensor, s: Scale, masks: Masks | None) -> Tensor:
    """The general path: y is what any base layer gave, with its own gradient; the update is added into it."""
    shared = torch.is_grad_enabled() and (y._is_view() or (y.is_leaf and y.requires_grad))
    if shared or not y.is_contiguous():
        y = y.clone(memory_format=torch.contiguous_format)  # an in-place step on a view costs a copy in backward anyway
    added: Tensor = _AddLowRank.apply(y, x.to(y.dtype), A, B, s, masks)  # type: ignore[no-untyped-call]
    return added


class _LinearPlusLowRank(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, weight: Weight, layer: nn.Module, s: Scale, masks: Masks | None
    ) -> Tensor:
        y: Tensor = layer(x)
        # A view of a temporary nobody else holds could not be changed in place by its reader; a graph has no views.
        if not torch.compiler.is_compiling() and y._is_view():
            y = torch.ops.aten._unsafe_view(y, y.shape)
        u, a, b = _add_(y, x, A, B, s, masks)
        packed = isinstance(weight, PackedLinear)
        ctx.packed = weight if packed else None
        ctx.save_for_backward(x, u, a, b, *(() if packed else (weight,)))
        ctx.s, ctx.masks, ctx.masters = s, masks, A.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, a, b, *weight = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ (weight[0] if ctx.packed is None else ctx.packed.unpack())
        dA, dB = _backward(ctx, dy, x, u, a, b, dx, wanted=ctx.needs_input_grad[1:3])
        return dx, dA, dB, None, None, None, None


class _AddLowRank(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, s: Scale, masks: Masks | None) -> Tensor:
        ctx.mark_dirty(y)
        u, a, b = _add_(y, x, A, B, s, masks)
        ctx.save_for_backward(x, u, a, b)
        ctx.s, ctx.masks, ctx.masters = s, masks, A.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, a, b = ctx.saved_tensors
        dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        dA, dB = _backward(ctx, dy, x, u, a, b, dx, wanted=ctx.needs_input_grad[2:4])
        return dy, dx, dA, dB, None, None


def _add_(y: Tensor, x: Tensor, A: Tensor, B: Tensor, s: Scale, masks: Masks | None) -> tuple[Tensor, Tensor, Tensor]:
    """Add the update into y; what backward needs: u and the compute-dtype copies of A and sB."""
    m = A.shape[0]
    a, b = A.to(y.dtype), (B * s).to(y.dtype)
    rows, out = _by_adapter(x, m), y.view(m, -1, y.shape[-1])
    if masks is not None:
        rows = torch.where(masks.draw(rows), rows, 0.0)
    if m == 1:
        a, b = a[0], b[0]
        u = rows[0] @ a.mT
        out[0].addmm_(u, b.mT)
    else:
        u = torch.bmm(rows, a.mT)
        out.baddbmm_(u, b.mT)
    return u, a, b


def _backward(
    ctx: Any, dy: Tensor, x: Tensor, u: Tensor, a: Tensor, b: Tensor, dx: Tensor | None, *, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dA and dB in the master's dtype; the update's share is added into dx when there is one."""
    m = 1 if a.dim() == 2 else a.shape[0]
    rows, out = _by_adapter(x, m), _by_adapter(dy, m)
    mask = ctx.masks.draw(rows) if ctx.masks is not None else None
    if m == 1:
        rows, out, mask = rows[0], out[0], None if mask is None else mask[0]
    du = out @ b
    dA = dB = None
    if wanted[0]:
        dA = (du.mT @ (rows if mask is None else torch.where(mask, rows, 0.0))).to(ctx.masters).view(m, *a.shape[-2:])
    if wanted[1]:
        dB = (out.mT @ u).to(ctx.masters).view(m, *b.shape[-2:]).mul_(ctx.s)
    if dx is not None:
        into = dx.view(rows.shape)
        if mask is not None:
            into.add_(torch.where(mask, du @ a, 0.0))
        elif m == 1:
            into.addmm_(du, a)
        else:
            into.baddbmm_(du, a)
    return dA, dB


def _by_adapter(x: Tensor, m: int) -> Tensor:
    return x.reshape(m, -1, x.shape[-1])
