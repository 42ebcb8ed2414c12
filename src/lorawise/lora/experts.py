"""A layer of fused experts with a low-rank update of every expert: one product a layer, rows sorted by expert.

With e one of the k experts a token's router chose, w its weight, W₁ gate and up, W₂ down:

    g = (W₁ₑ + s₁·B₁ₑ·A₁ₑ)·x        h = gate(g)        y = Σₑ w · (W₂ₑ + s₂·B₂ₑ·A₂ₑ)·h

Shapes: x (T, hidden), index and weights (T, k), A (E, r, in), B (E, out, r); rows S = T·k. A model's own class says how
its weights lie (transposed, with biases, gate and up interleaved) and how the gate is applied; it is asked, not copied.
With m adapters side by side A is (m·E, r, in) and B (m·E, out, r), and the i-th m-th of the tokens takes the i-th E.

Saved for backward: x, weights, g (S, 2·inner), A₁·x and A₂·h (S, r each), and A and sB in the compute dtype. Neither
sorted copies of x, nor h, nor an expert's output, nor any delta of E·out·in values: h is computed again from g, and

    dw = dy·(W₂ₑ + s₂·B₂ₑ·A₂ₑ)·h        needs the gradient of h, which is there, and h.

While a pass runs, rows sorted by expert are held once or twice: (S, hidden) and (S, inner). An expert that no row
reached costs nothing, and its A and B get a zero gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorawise.base.errors import AdapterError
from lorawise.lora.product import Scale


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertUpdate:
    """What is added to every expert of one fused parameter: s · B·A with A (E, r, in) and B (E, out, r), s a number or
    (E, 1, 1)."""

    A: Tensor
    B: Tensor
    scaling: Scale

    def __post_init__(self) -> None:
        a, b = tuple(self.A.shape), tuple(self.B.shape)
        if len(a) != 3 or len(b) != 3 or a[0] != b[0] or a[1] != b[2]:
            raise AdapterError(f"A {a} and B {b}", expected="A (experts, r, in) and B (experts, out, r)")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frozen:
    """One fused parameter as (E, out, in), its biases (E, out), and the scaling of what is added."""

    weight: Tensor
    bias: Tensor | None
    scaling: Scale


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sorted:
    """Rows in the order of their adapters' experts: `order` (S) into the T·k pairs, `token` (S) into T, `counts` for
    each of the m·E, of which `experts` have weights of their own; `chosen` is k."""

    order: Tensor
    token: Tensor
    counts: Sequence[int]
    experts: int
    chosen: int

    def reached(self) -> Iterator[tuple[int, int, slice]]:
        """(adapter's expert, expert, its rows among the sorted) of those that some row reached."""
        start = 0
        for i, count in enumerate(self.counts):
            rows = slice(start, start + count)
            if count:
                yield i, i % self.experts, rows
            start += count

    def summed(self, rows: Tensor) -> Tensor:
        """Σ over the k rows of each token: (S, width) → (T, width); the same sum on every run."""
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(self.order), device=self.order.device)
        return rows[place].view(-1, self.chosen, rows.shape[1]).sum(1)


def adapted_experts(
    experts: nn.Module,
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    *,
    gate_up: ExpertUpdate | None,
    down: ExpertUpdate | None,
) -> Tensor:
    """y (T, hidden) of a transformers experts module with one or both of its projections updated.

    Gradients reach x, the routing weights and the factors, the latter in their masters' dtype. `AdapterError` for
    experts without a gate, with a norm of their own, or spread over devices, and for tokens that m adapters cannot
    share evenly.
    """
    if not experts.has_gate or experts._is_expert_parallel or experts.has_post_expert_norm:
        raise AdapterError(
            f"{type(experts).__name__} cannot be adapted: its experts have no gate, a norm of their own, or are "
            "spread over devices",
            expected="gated experts, fused as gate_up_proj and down_proj, whole on one device",
            cure="target attention (the preset 'attention' or 'qv')",
        )
    some = down if gate_up is None else gate_up
    assert some is not None, "without any update the experts' own forward is asked"
    first, gate_up = _frozen(experts, "gate_up_proj", gate_up, some)
    second, down = _frozen(experts, "down_proj", down, some)
    rows = _sorted(index, experts=len(first.weight), adapters=len(some.A) // len(first.weight))
    y: Tensor = _AdaptedExperts.apply(  # type: ignore[no-untyped-call]
        x, weights, gate_up.A, gate_up.B, down.A, down.B, first, second, experts._apply_gate, rows
    )
    return y


def _sorted(index: Tensor, *, experts: int, adapters: int) -> _Sorted:
    tokens, chosen = index.shape
    flat = index.reshape(-1)
    if adapters > 1:
        if tokens % adapters:
            raise AdapterError(
                f"{tokens} tokens for {adapters} slots",
                expected="the same number of tokens for every slot, slot after slot along the first dimension",
                cure="repeat the rows for each slot, or choose one adapter: adapters.use(name)",
            )
        slot = torch.arange(adapters, device=index.device)
        flat = flat + slot.repeat_interleave(tokens // adapters * chosen) * experts
    order = torch.argsort(flat, stable=True)
    counts: list[int] = torch.bincount(flat, minlength=adapters * experts).tolist()
    return _Sorted(order=order, token=order // chosen, counts=counts, experts=experts, chosen=chosen)


def _frozen(
    experts: nn.Module, key: str, update: ExpertUpdate | None, other: ExpertUpdate
) -> tuple[_Frozen, ExpertUpdate]:
    """A projection, and its update: one of rank 0 when only the other projection has any."""
    stored: Tensor = experts.get_parameter(key)
    weight = stored.mT if experts.is_transposed else stored
    bias = experts.get_parameter(f"{key}_bias") if experts.has_bias else None
    if update is None:
        count, (out_width, in_width) = len(other.A), weight.shape[1:]
        A, B = other.A.new_empty(count, 0, in_width), other.B.new_empty(count, out_width, 0)
        update = ExpertUpdate(A=A, B=B, scaling=1.0)
    return _Frozen(weight=weight, bias=bias, scaling=update.scaling), update


class _AdaptedExperts(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        A1: Tensor,
        B1: Tensor,
        A2: Tensor,
        B2: Tensor,
        first: _Frozen,
        second: _Frozen,
        gate: Callable[[Tensor], Tensor],
        sorted_rows: _Sorted,
    ) -> Tensor:
        a1, b1, a2, b2 = (t.to(x.dtype) for t in (A1, B1 * first.scaling, A2, B2 * second.scaling))
        order, reached = sorted_rows.order, list(sorted_rows.reached())
        g, u1 = _projected(x[sorted_rows.token], first, a1, b1, reached)
        out, u2 = _projected(gate(g), second, a2, b2, reached)
        out.mul_(weights.reshape(-1)[order, None])
        y = sorted_rows.summed(out)
        ctx.save_for_backward(x, weights, g, u1, u2, a1, b1, a2, b2)
        ctx.first, ctx.second, ctx.gate, ctx.rows, ctx.masters = first, second, gate, sorted_rows, A1.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, g, u1, u2, a1, b1, a2, b2 = ctx.saved_tensors
        first, second, order, reached = ctx.first, ctx.second, ctx.rows.order, list(ctx.rows.reached())
        share = weights.reshape(-1)[order, None].to(x.dtype)
        h, dg_of = _gated(ctx.gate, g)
        dout = dy[ctx.rows.token]
        dh, du2 = _pulled(dout, second, a2, b2, reached)
        dshare = (dh * h).sum(-1)
        if second.bias is not None:
            for _, e, rows in reached:
                dshare[rows] += dout[rows] @ second.bias[e]
        dA2 = _outer(du2.mul_(share), h, ctx.rows, ctx.masters)
        dB2 = _outer(dout, u2 * share, ctx.rows, ctx.masters).mul_(second.scaling)
        del h, dout, du2
        dg = dg_of(dh.mul_(share))
        del dh, dg_of
        dx, du1 = _pulled(dg, first, a1, b1, reached)
        dA1 = _outer(du1, x[ctx.rows.token], ctx.rows, ctx.masters)
        dB1 = _outer(dg, u1, ctx.rows, ctx.masters).mul_(first.scaling)
        dweights = torch.empty(order.shape, dtype=weights.dtype, device=weights.device)
        dweights[order] = dshare.to(weights.dtype)
        return ctx.rows.summed(dx), dweights.view(weights.shape), dA1, dB1, dA2, dB2, None, None, None, None


Reached = Sequence[tuple[int, int, slice]]


def _projected(x: Tensor, frozen: _Frozen, a: Tensor, b: Tensor, reached: Reached) -> tuple[Tensor, Tensor]:
    """y = x·Wₑᵀ + u·(sB)ᵀ + bₑ and u = x·Aᵀ, rows sorted by expert."""
    y, u = x.new_empty(len(x), frozen.weight.shape[1]), x.new_empty(len(x), a.shape[1])
    for i, e, rows in reached:
        own, into = x[rows], y[rows]
        torch.mm(own, a[i].mT, out=u[rows])
        torch.mm(own, frozen.weight[e].mT, out=into)
        into.addmm_(u[rows], b[i].mT)
        if frozen.bias is not None:
            into.add_(frozen.bias[e])
    return y, u


def _pulled(dy: Tensor, frozen: _Frozen, a: Tensor, b: Tensor, reached: Reached) -> tuple[Tensor, Tensor]:
    """dx = dy·Wₑ + du·A and du = dy·(sB)."""
    dx, du = dy.new_empty(len(dy), frozen.weight.shape[2]), dy.new_empty(len(dy), a.shape[1])
    for i, e, rows in reached:
        own, into = dy[rows], dx[rows]
        torch.mm(own, b[i], out=du[rows])
        torch.mm(own, frozen.weight[e], out=into)
        into.addmm_(du[rows], a[i])
    return dx, du


def _outer(left: Tensor, right: Tensor, rows: _Sorted, dtype: torch.dtype) -> Tensor:
    """leftᵀ·right of every expert's rows: (m·E, left's width, right's width); zero where no row came."""
    found = left.new_zeros(len(rows.counts), left.shape[1], right.shape[1], dtype=dtype)
    for i, _, own in rows.reached():
        found[i] = left[own].mT @ right[own]
    return found


def _gated(gate: Callable[[Tensor], Tensor], g: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """h = gate(g), computed again, and what turns the gradient of h into that of g."""
    with torch.enable_grad():
        leaf = g.detach().requires_grad_()
        h = gate(leaf)

    def back(dh: Tensor) -> Tensor:
        return torch.autograd.grad(h, leaf, dh)[0]

    return h.detach(), back
