"""Cross-entropy over labelled positions, a chunk of them at a time; logits of more than one chunk never exist.

    loss_p = log Σ_v exp(z_pv) − z_py      dz = softmax(z) − onehot(y)      dh = dz·∂z/∂h

A chunk's gradient is taken in the forward pass, while its logits are there, so the head is computed once. In backward
the upstream gradient of each slot's sum multiplies it.
Shapes: hidden (n, tokens, width), positions and targets (P,), logits of a chunk (n, c, V), sums (n,), each (n, P).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorawise.models.head import Head

CHUNK_BYTES = 128 * 2**20
HALF_BOOST = 1024.0  # lifts fp16's gradients of logits above the smallest number the type holds; taken out in fp32


def chunked_loss(hidden: Tensor, positions: Tensor, targets: Tensor, head: Head, chunk: int) -> tuple[Tensor, Tensor]:
    """sums (n,), differentiable in `hidden` and the head's trained parameters; each (n, P), detached; fp32 (fp64)."""
    if torch.is_grad_enabled():
        arguments = (hidden, positions, targets, head, chunk, *head.trained_parameters())
        sums, each = _ChunkedLoss.apply(*arguments)  # type: ignore[no-untyped-call]
        return sums, each
    each = hidden.new_empty(hidden.shape[0], len(positions), dtype=wide_dtype(hidden.dtype))
    for part in _parts(len(positions), chunk):
        logits = head(torch.index_select(hidden, 1, positions[part]))
        each[:, part], _ = _losses(logits, targets[part])
    return each.sum(1), each


def chunk_of(vocabulary: int, n: int, itemsize: int, limit: int = CHUNK_BYTES) -> int:
    """Positions whose logits and their gradient, and logits and softmax in fp32, stay within `limit` bytes."""
    return max(16, limit // (n * vocabulary * (2 * itemsize + 8)))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, positions: Tensor, targets: Tensor, head: Head, chunk: int, *parameters: nn.Parameter
    ) -> tuple[Tensor, Tensor]:
        n, tokens, width = hidden.shape
        half = hidden.dtype == torch.float16
        boost = HALF_BOOST if half else 1.0
        each = hidden.new_empty(n, len(positions), dtype=wide_dtype(hidden.dtype))
        d_hidden = hidden.new_empty(n, len(positions), width, dtype=torch.float32 if half else None)
        d_parameters = [torch.zeros_like(p) for p in parameters]
        for part in _parts(len(positions), chunk):
            picked = torch.index_select(hidden, 1, positions[part]).requires_grad_()
            with torch.enable_grad():
                logits = head(picked)
            each[:, part], softmax = _losses(logits, targets[part])
            d_logits = _minus_onehot_(softmax, targets[part]).mul_(boost).to(logits.dtype)
            d_picked, *d_own = torch.autograd.grad(
                logits, (picked, *parameters), d_logits, allow_unused=True, materialize_grads=True
            )
            d_hidden[:, part] = d_picked
            for total, own in zip(d_parameters, d_own, strict=True):
                total.add_(own, alpha=1 / boost)
        ctx.save_for_backward(positions, d_hidden, *d_parameters)
        ctx.tokens, ctx.dtype, ctx.boost = tokens, hidden.dtype, boost
        ctx.mark_non_differentiable(each)
        return each.sum(1), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sums: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        positions, d_picked, *d_parameters = ctx.saved_tensors
        n = len(d_sums)
        d_hidden = None
        if ctx.needs_input_grad[0]:
            d_hidden = torch.zeros(n, ctx.tokens, d_picked.shape[-1], dtype=ctx.dtype, device=d_picked.device)
            scaled = d_picked * (d_sums / ctx.boost).to(d_picked.dtype).view(n, 1, 1)
            d_hidden.index_copy_(1, positions, scaled.to(ctx.dtype))
        for_each = [g * _by_slot(d_sums.to(g.dtype), g) for g in d_parameters]
        return d_hidden, None, None, None, None, *for_each


def _by_slot(d_sums: Tensor, gradient: Tensor) -> Tensor:
    """The upstream gradient against a parameter's: of a bank (n, …) slot by slot; of one adapter, the number."""
    return d_sums if len(d_sums) == 1 else d_sums.view(-1, *[1] * (gradient.dim() - 1))


def _losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's loss (n, c) and the softmax (n, c, V), both wide. The largest probability is never tiny, so its
    logarithm gives logΣexp exactly where the target's own would not."""
    z = logits.detach().to(wide_dtype(logits.dtype))
    of_target = z.gather(-1, _as_index(targets, z)).squeeze(-1)
    top = z.amax(-1)
    softmax = torch.softmax(z, -1)
    return top - softmax.amax(-1).log() - of_target, softmax


def _minus_onehot_(softmax: Tensor, targets: Tensor) -> Tensor:
    index = _as_index(targets, softmax)
    return softmax.scatter_(-1, index, softmax.gather(-1, index) - 1)


def _as_index(targets: Tensor, of: Tensor) -> Tensor:
    return targets.view(1, -1, 1).expand(of.shape[0], -1, 1)


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
