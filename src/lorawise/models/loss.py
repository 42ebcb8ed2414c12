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
from lorawise.models.kernels import kernel_device

CHUNK_BYTES = 48 * 2**20
CHUNK_ROWS = 64  # fewer rows of logits than this, and reading the head's weights costs more than the products
CACHE_BYTES = 2**21  # a processor reduces this much of the logits at a time, in fp32, without leaving its cache
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
        each[:, part] = _losses(logits, targets[part], None)
    return each.sum(1), each


def chunk_of(vocabulary: int, n: int, itemsize: int, limit: int = CHUNK_BYTES) -> int:
    """Positions whose logits and their gradient, for n slots, stay within `limit` bytes; never too few to be fast."""
    return max(-(-CHUNK_ROWS // n), limit // (n * vocabulary * 2 * itemsize))


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
            d_logits = torch.empty_like(logits)
            each[:, part] = _losses(logits.detach(), targets[part], d_logits, boost)
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


def _losses(logits: Tensor, targets: Tensor, d_logits: Tensor | None, boost: float = 1.0) -> Tensor:
    """Each position's loss (n, c), wide; fills `d_logits` with boost·(softmax − onehot) where one is given.

    The largest probability is never tiny, so its logarithm gives logΣexp exactly where the target's own would not.
    """
    n, c, vocabulary = logits.shape
    rows, index = logits.view(n * c, vocabulary), targets.repeat(n).view(-1, 1)
    wide = wide_dtype(logits.dtype)
    losses = rows.new_empty(n * c, 1, dtype=wide)
    some = max(1, CACHE_BYTES // (vocabulary * wide.itemsize)) if kernel_device(rows) == "cpu" else n * c
    for part in _parts(n * c, some):
        z = rows[part].to(wide)
        softmax = torch.softmax(z, -1)
        largest = softmax.amax(-1, keepdim=True).log_()
        losses[part] = z.amax(-1, keepdim=True) - largest - z.gather(-1, index[part])
        if d_logits is not None:
            softmax.scatter_(-1, index[part], softmax.gather(-1, index[part]) - 1)
            d_logits.view(n * c, vocabulary)[part] = softmax if boost == 1.0 else softmax.mul_(boost)
    return losses.view(n, c)


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
