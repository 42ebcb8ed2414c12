"""Exact causal attention of whole documents, a block of queries at a time, in plain matrix products.

    P = exp(f(s·QKᵀ) − L)      L = logΣexp of the row, sinks included      out = P·V
    dV = Pᵀ·dO     D = rowsum(dO ∘ out)     dS = P ∘ (dO·Vᵀ − D) ∘ f'     dQ = s·dS·K     dK = s·dSᵀ·Q

f is the identity, or cap·tanh(·/cap). Saved for backward: Q, K, V, out and L; P is made again, one block at a time,
so memory is linear in the length. Subtracting L or D is part of the product (two more columns of Q and dO against ones
in K and V), so that in 16 bits the numbers that get rounded are the small ones, near zero where P is large. Where torch
has a fused kernel for the forward (`fused_attention`), out and L come from it; its backward is slower than this one.

Shapes: query (n, H, T, d), key (n, K, T, d), value (n, K, T, v), out (n, T, H, v). One row of T tokens holds the
documents one after the other, the same for all n. Inside, heads that share a key head are one matrix:
q (m, t·G, d + 2) with G = H/K, and documents of equal length are one batch m = documents · n · K.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorawise.models.fused_attention import fused_forward, has_fused_forward

QUERY_BLOCK = 128  # queries at a time; a causal block of b queries wastes b/2 products a query
SCORES_AT_ONCE = 2**19  # elements of one block's P, small enough to stay in the cache between two products
TOKENS_AT_ONCE = 128  # of a sum in the wide type, for the same reason
SHIFTS = 2  # columns that carry a number in two parts, for 16-bit types hold 8 or 11 bits each


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scores become weights: scale s, sliding window (keys i − window < j ≤ i), softcap."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], rule: Rule, sinks: Tensor | None = None
) -> Tensor:
    """(n, T, H, v): attention of each document to itself alone. `sinks` (H,): a frozen extra logit a head."""
    out: Tensor = _CausalAttention.apply(query, key, value, tuple(lengths), rule, sinks)  # type: ignore[no-untyped-call]
    return out


class _CausalAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: Rule, sinks: Tensor | None
    ) -> Tensor:
        n, heads, tokens, _ = query.shape
        out = query.new_empty(n, tokens, heads, value.shape[-1])
        norm = query.new_empty(n, tokens, heads, dtype=_wide(query))
        if sinks is None and rule.window is None and rule.softcap is None and has_fused_forward(query, value):
            fused_forward(query, key, value, lengths, rule.scale, out=out, norm=norm)
        else:
            for batch in _batches(lengths, n, key.shape[1], heads):
                q, k, v = (
                    batch.queries(query),
                    batch.keys(key, ones=True, scale=rule.scale),
                    batch.keys(value, ones=False),
                )
                batch_out, batch_norm = _forward(batch, q, k, v, rule, sinks)
                batch.put_queries(out, batch_out)
                batch.put_queries(norm.unsqueeze(-1), batch_norm.unsqueeze(-1))
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.lengths, ctx.rule = lengths, rule
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, norm = ctx.saved_tensors
        n, heads, tokens, _ = query.shape
        spread = _products_of_rows(d_out, out, norm.dtype)
        d_query, d_key, d_value = (x.new_empty(n, tokens, x.shape[1], x.shape[3]) for x in (query, key, value))
        for batch in _batches(ctx.lengths, n, key.shape[1], heads):
            q, dy = batch.queries(query, minus=norm), batch.queries(d_out.transpose(1, 2), minus=spread)
            k, v = batch.keys(key, ones=True, scale=ctx.rule.scale), batch.keys(value, ones=True)
            dq, dk, dv = _backward(batch, q, k, v, dy, ctx.rule)
            batch.put_queries(d_query, dq)
            batch.put_keys(d_key, dk.mul_(ctx.rule.scale))
            batch.put_keys(d_value, dv)
        return d_query.transpose(1, 2), d_key.transpose(1, 2), d_value.transpose(1, 2), None, None, None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """`count` documents of `length` tokens, in runs (first token, documents) that lie side by side in the row."""

    length: int
    runs: tuple[tuple[int, int], ...]
    n: int
    key_heads: int
    group: int

    @property
    def count(self) -> int:
        return sum(documents for _, documents in self.runs)

    def queries(self, x: Tensor, minus: Tensor | None = None) -> Tensor:
        """(m, t·G, width + 2) of x (n, H, T, width), then −`minus` (n, T, H) in two parts, or zeros."""
        width = x.shape[-1]
        packed = x.new_empty(self.count, self.n, self.key_heads, self.length, self.group, width + SHIFTS)
        for part, run in self._parts(packed):
            part[..., :width] = self._run(x.transpose(1, 2), run)
            if minus is None:
                part[..., width:] = 0
            else:
                shift = self._run(minus.unsqueeze(-1), run).squeeze(-1).neg()
                part[..., width] = shift
                part[..., width + 1] = shift - part[..., width]
        return packed.view(-1, self.length * self.group, width + SHIFTS)

    def keys(self, x: Tensor, *, ones: bool, scale: float | None = None) -> Tensor:
        """(m, t, width) of scale·x (n, K, T, width), with two more columns of ones when asked."""
        width = x.shape[-1]
        packed = x.new_empty(self.count, self.n, self.key_heads, self.length, width + (SHIFTS if ones else 0))
        for part, run in self._parts(packed):
            part[..., :width] = self._run(x.transpose(1, 2), run).squeeze(-2)
        if scale is not None:
            packed.mul_(scale)
        packed[..., width:] = 1
        return packed.view(-1, self.length, packed.shape[-1])

    def put_queries(self, into: Tensor, x: Tensor) -> None:
        """Write x (m, t·G, width) back into `into` (n, T, H, width)."""
        packed = x.view(self.count, self.n, self.key_heads, self.length, self.group, -1)
        for part, run in self._parts(packed):
            self._run(into, run).copy_(part)

    def put_keys(self, into: Tensor, x: Tensor) -> None:
        """Write x (m, t, width) back into `into` (n, T, K, width)."""
        packed = x.view(self.count, self.n, self.key_heads, self.length, 1, -1)
        for part, run in self._parts(packed):
            self._run(into, run).copy_(part)

    def _parts(self, packed: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        done = 0
        for run in self.runs:
            yield packed[done : done + run[1]], run
            done += run[1]

    def _run(self, x: Tensor, run: tuple[int, int]) -> Tensor:
        """(documents, n, K, t, G, width), a view of one run of x (n, T, heads, width)."""
        start, documents = run
        part = x[:, start : start + documents * self.length]
        heads = (self.key_heads, x.shape[2] // self.key_heads)
        split = part.view(self.n, documents, self.length, *heads, x.shape[-1])
        return split.permute(1, 0, 3, 2, 4, 5)


def _batches(lengths: tuple[int, ...], n: int, key_heads: int, heads: int) -> Iterator[_Batch]:
    """Documents of equal length together, as many at once as keep one block's scores in the cache."""
    group = heads // key_heads
    by_length: dict[int, list[int]] = {}
    start = 0
    for length in lengths:
        by_length.setdefault(length, []).append(start)
        start += length
    for length, starts in by_length.items():
        each = n * heads * min(length, QUERY_BLOCK) * length
        some = max(1, SCORES_AT_ONCE // each)
        for first in range(0, len(starts), some):
            runs = tuple(_runs(starts[first : first + some], length))
            yield _Batch(length=length, runs=runs, n=n, key_heads=key_heads, group=group)


def _products_of_rows(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, T, H): rowsum(a ∘ b) in `dtype`, for a and b (n, T, H, width)."""
    products = a.new_empty(a.shape[:-1], dtype=dtype)
    for start in range(0, a.shape[1], TOKENS_AT_ONCE):
        here = slice(start, start + TOKENS_AT_ONCE)
        products[:, here] = (a[:, here].to(dtype) * b[:, here]).sum(-1)
    return products


def _runs(starts: Sequence[int], length: int) -> Iterator[tuple[int, int]]:
    first, documents = starts[0], 1
    for start in starts[1:]:
        if start == first + documents * length:
            documents += 1
        else:
            yield first, documents
            first, documents = start, 1
    yield first, documents


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(low, start, stop): queries start … stop see keys low … stop."""
    for start in range(0, length, QUERY_BLOCK):
        low = 0 if window is None else max(0, start - window + 1)
        yield low, start, min(start + QUERY_BLOCK, length)


def _forward(batch: _Batch, q: Tensor, k: Tensor, v: Tensor, rule: Rule, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """out (m, t·G, v) and norm (m, t·G)."""
    G = batch.group
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[-1])
    norm = q.new_empty(q.shape[:2], dtype=_wide(q))
    sink = None if sinks is None else _sinks_of(batch, sinks.detach().to(norm.dtype))
    for low, start, stop in _blocks(batch.length, rule.window):
        rows = slice(start * G, stop * G)
        block, keys = q[:, rows], k[:, low:stop]
        scores = _mask_(_scores(block, keys, rule), low, start, stop, G, rule.window)
        top = scores.to(norm.dtype).amax(-1)
        if scores.dtype == norm.dtype:
            scores.sub_(top.unsqueeze(-1))
        else:
            block[..., -SHIFTS] = -top
            scores = _mask_(torch.bmm(block, keys.mT), low, start, stop, G, rule.window)
        weights = scores.exp_()
        total = weights.sum(-1, dtype=norm.dtype)
        if sink is not None:
            total = total + (sink - top.view(-1, stop - start, G)).exp().view(total.shape)
        out[:, rows] = torch.bmm(weights.to(v.dtype), v[:, low:stop]).div_(total.unsqueeze(-1))
        norm[:, rows] = total.log_().add_(top)
    return out, norm


def _backward(batch: _Batch, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """dq (m, t·G, d) still without the scale, dk (m, t, d), dv (m, t, v). q and dy carry −norm and −D."""
    G, d, width = batch.group, q.shape[-1] - SHIFTS, v.shape[-1] - SHIFTS
    dq = q.new_empty(q.shape[0], q.shape[1], d)
    dk = q.new_zeros(*k.shape[:2], d, dtype=_wide(q))
    dv = q.new_zeros(*v.shape[:2], width, dtype=_wide(q))
    for low, start, stop in _blocks(batch.length, rule.window):
        rows = slice(start * G, stop * G)
        block, keys, d_block = q[:, rows], k[:, low:stop], dy[:, rows]
        scores = _scores(block, keys, rule)
        bend = None if rule.softcap is None else 1 - (scores / rule.softcap).square()
        if bend is not None:
            scores += block[..., d:].to(scores.dtype).sum(-1, keepdim=True)
        weights = _mask_(scores, low, start, stop, G, rule.window).exp_()
        dv[:, low:stop] += torch.bmm(weights.to(dy.dtype).mT, d_block[..., :width])
        d_scores = torch.bmm(d_block, v[:, low:stop].mT).mul_(weights)
        if bend is not None:
            d_scores.mul_(bend)
        dq[:, rows] = torch.bmm(d_scores, keys[..., :d])
        dk[:, low:stop] += torch.bmm(d_scores.mT, block[..., :d])
    return dq, dk, dv


def _scores(q: Tensor, k: Tensor, rule: Rule) -> Tensor:
    """q·kᵀ with what q's last columns subtract; capped scores instead without, and in the wide type."""
    if rule.softcap is None:
        return torch.bmm(q, k.mT)
    wide, d = _wide(q), q.shape[-1] - SHIFTS
    scores = torch.bmm(q[..., :d].to(wide), k[..., :d].to(wide).mT)
    return scores.div_(rule.softcap).tanh_().mul_(rule.softcap)


def _mask_(scores: Tensor, low: int, start: int, stop: int, group: int, window: int | None) -> Tensor:
    """−∞ added where a query must not look: after itself, or a window or more before itself."""
    block = stop - start
    scores[..., start - low :].add_(_after(block, group, scores.dtype, scores.device))
    if window is not None and (past := start - low - window) + block > 0:
        scores[..., :block].add_(_before(block, group, past, scores.dtype, scores.device))
    return scores


@lru_cache(maxsize=64)
def _after(block: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(block·group, block): −∞ at the keys after each query of a block on the diagonal, else 0."""
    step = torch.arange(block, device=device)
    hidden = step > step.repeat_interleave(group)[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


@lru_cache(maxsize=64)
def _before(block: int, group: int, past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(block·group, block): −∞ at the keys, of the first that a block sees, which have left each query's window."""
    step = torch.arange(block, device=device)
    hidden = step <= step.repeat_interleave(group)[:, None] + past
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def _sinks_of(batch: _Batch, sinks: Tensor) -> Tensor:
    """(m, 1, G) of one logit a head (H,)."""
    by_group = sinks.view(1, 1, batch.key_heads, 1, batch.group)
    return by_group.expand(batch.count, batch.n, -1, -1, -1).reshape(-1, 1, batch.group)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
