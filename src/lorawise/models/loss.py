"""Cross-entropy over labelled positions, a chunk of them at a time; logits of more than one chunk never exist.

    loss_p = log Σ_v exp(z_pv) − z_py      dz = softmax(z) − onehot(y)      dh = dz·∂z/∂h

A chunk's gradient is taken in the forward pass, while its logits are there: the head is computed once. The upstream
gradient of a slot's sum multiplies it in backward.
Shapes: hidden (n, tokens, width), positions and targets (P,), logits of a chunk (n, c, V), sums (n,), each (n, P).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 128 * 2**20
HALF_BOOST = 1024.0  # keeps fp16's gradients of logits above what the type can hold; taken out again in fp32


def chunked_loss(
    hidden: Tensor,
    positions: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """sums (n,) with a gradient to `hidden` and to the head's `parameters`; each (n, P) without. In fp32 (fp64)."""
    if not torch.is_grad_enabled():
        each = [loss for _, loss, _ in _chunks(hidden, positions, targets, head, chunk)]
        losses = torch.cat(each, dim=1) if each else _no_losses(hidden)
        return losses.sum(1), losses
    sums, losses = _ChunkedLoss.apply(hidden, positions, targets, head, chunk, *parameters)  # type: ignore[no-untyped-call]
    return sums, losses


def chunk_of(vocabulary: int, n: int, itemsize: int, limit: int = CHUNK_BYTES) -> int:
    """Positions whose logits, their softmax in fp32 and their gradient stay within `limit` bytes."""
    return max(16, limit // (n * vocabulary * (2 * itemsize + 4)))


class _ChunkedLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        positions: Tensor,
        targets: Tensor,
        head: Callable[[Tensor], Tensor],
        chunk: int,
        *parameters: nn.Parameter,
    ) -> tuple[Tensor, Tensor]:
        n, _, width = hidden.shape
        wide = hidden.dtype in (torch.float32, torch.float64, torch.bfloat16)
        d_hidden = hidden.new_empty(n, len(positions), width, dtype=None if wide else torch.float32)
        d_parameters = [torch.zeros_like(p) for p in parameters]
        losses, done = [_no_losses(hidden)], 0
        with torch.enable_grad():
            for picked, loss, (logits, d_logits, boost) in _chunks(hidden, positions, targets, head, chunk):
                d_chunk, *d_own = torch.autograd.grad(
                    logits, [picked, *parameters], d_logits, allow_unused=True, materialize_grads=True
                )
                d_hidden[:, done : done + loss.shape[1]] = d_chunk
                for total, part in zip(d_parameters, d_own, strict=True):
                    total.add_(part, alpha=1 / boost)
                losses.append(loss)
                done += loss.shape[1]
        if not wide:
            d_hidden /= HALF_BOOST
        each = torch.cat(losses, dim=1)
        ctx.save_for_backward(positions, d_hidden, *d_parameters)
        ctx.tokens, ctx.dtype = hidden.shape[1], hidden.dtype
        ctx.mark_non_differentiable(each)
        return each.sum(1), each
