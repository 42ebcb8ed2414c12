"""A layer of fused experts with a low-rank update of every expert: one product a layer, rows sorted by expert.

With e one of the k experts a token's router chose, w its weight, W₁ gate and up, W₂ down:

    g = (W₁ₑ + s₁·B₁ₑ·A₁ₑ)·x        h = gate(g)        y = Σₑ w · (W₂ₑ + s₂·B₂ₑ·A₂ₑ)·h

Shapes: x (T, hidden), index and weights (T, k), A (E, r, in), B (E, out, r); rows S = T·k. A model's own class says how
its weights lie (transposed, with biases, gate and up interleaved) and how the gate is applied; it is asked, not copied.

Saved for backward: x, weights, g (S, 2·inner), A₁·x and A₂·h (S, r each), and A and sB in the compute dtype. Neither
sorted copies of x, nor h, nor an expert's output, nor any delta of E·out·in values: h is computed again from g, and

    dw = dy·(W₂ₑ + s₂·B₂ₑ·A₂ₑ)·h        needs the gradient of h, which is there, and h.

An expert that no row reached costs nothing, and its A and B get a zero gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorawise.base.errors import AdapterError


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertUpdate:
    """What is added to every expert of one fused parameter: s · B·A with A (E, r, in) and B (E, out, r)."""

    A: Tensor
    B: Tensor
    scaling: float

    def __post_init__(self) -> None:
        a, b = tuple(self.A.shape), tuple(self.B.shape)
        if len(a) != 3 or len(b) != 3 or a[0] != b[0] or a[1] != b[2]:
            raise AdapterError(f"A {a} and B {b}", expected="A (experts, r, in) and B (experts, out, r)")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frozen:
    """One fused parameter as (E, out, in), its biases (E, out), and the scaling of what is added."""

    weight: Tensor
    bias: Tensor | None
    scaling: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sorted:
    """Rows in the order of their experts: `order` (S) into the T·k pairs, `token` (S) into T, `counts` an expert."""

    order: Tensor
    token: Tensor
    counts: Sequence[int]

    def experts(self) -> Iterator[tuple[int, slice, Tensor]]:
        """(expert, its rows among the sorted, their tokens) of the experts that some row reached."""
        start = 0
        for e, count in enumerate(self.counts):
            rows = slice(start, start + count)
            if count:
                yield e, rows, self.token[rows]
            start += count


def adapted_experts(
    experts: nn.Module, x: Tensor, index: Tensor, weights: Tensor, *, gate_up: ExpertUpdate, down: ExpertUpdate
) -> Tensor:
    """y (T, hidden) of a transformers experts module with both its projections updated.

    Gradients reach x, the routing weights and the factors, the latter in their masters' dtype. `AdapterError` for
    experts without a gate, with a norm of their own, or spread over devices.
    """
    if not experts.has_gate or experts._is_expert_parallel or experts.has_post_expert_norm:
        raise AdapterError(
            f"{type(experts).__name__} cannot be adapted: its experts have no gate, a norm of their own, or are "
            "spread over devices",
            expected="gated experts, fused as gate_up_proj and down_proj, whole on one device",
            cure="target attention (the preset 'attention' or 'qv')",
        )
    rows = _sorted(index, gate_up.A.shape[0])
    first, second = _frozen(experts, "gate_up_proj", gate_up), _frozen(experts, "down_proj", down)
    y: Tensor = _AdaptedExperts.apply(  # type: ignore[no-untyped-call]
        x, weights, gate_up.A, gate_up.B, down.A, down.B, first, second, experts._apply_gate, rows
    )
    return y


def _sorted(index: Tensor, count: int) -> _Sorted:
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts: list[int] = torch.bincount(flat, minlength=count).tolist()
    return _Sorted(order=order, token=order // index.shape[-1], counts=counts)


def _frozen(experts: nn.Module, key: str, update: ExpertUpdate) -> _Frozen:
    weight = experts.get_parameter(key)
    bias = experts.get_parameter(f"{key}_bias") if experts.has_bias else None
    return _Frozen(weight=weight.mT if experts.is_transposed else weight, bias=bias, scaling=update.scaling)


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
        share = weights.reshape(-1)[sorted_rows.order, None]
        size = len(sorted_rows.order)
        g = x.new_empty(size, first.weight.shape[1])
        u1, u2 = x.new_empty(size, a1.shape[1]), x.new_empty(size, a2.shape[1])
        y = torch.zeros_like(x)
        for e, rows, token in sorted_rows.experts():
            _project(x[token], e, first, a1, b1, u=u1[rows], y=g[rows])
            h = gate(g[rows])
            out = x.new_empty(len(h), second.weight.shape[1])
            _project(h, e, second, a2, b2, u=u2[rows], y=out)
            y.index_add_(0, token, (out * share[rows]).to(x.dtype))
        ctx.save_for_backward(x, weights, g, u1, u2, a1, b1, a2, b2)
        ctx.first, ctx.second, ctx.gate, ctx.rows, ctx.masters = first, second, gate, sorted_rows, A1.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, g, u1, u2, a1, b1, a2, b2 = ctx.saved_tensors
        first, second = ctx.first, ctx.second
        order = ctx.rows.order
        share = weights.reshape(-1)[order, None].to(x.dtype)
        dx = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        dshare = torch.empty_like(share)
        dA1, dB1, dA2, dB2 = (torch.zeros_like(t, dtype=ctx.masters) for t in (a1, b1, a2, b2))
        for e, rows, token in ctx.rows.experts():
            out = dy[token]
            h, dg_of = _gated(ctx.gate, g[rows])
            du2 = out @ b2[e]
            dh = torch.addmm(out @ second.weight[e], du2, a2[e])
            dshare[rows] = (dh * h).sum(-1, keepdim=True)
            if second.bias is not None:
                dshare[rows] += (out @ second.bias[e])[:, None]
            dA2[e] = (du2 * share[rows]).mT @ h
            dB2[e] = (out * share[rows]).mT @ u2[rows]
            dg = dg_of(dh.mul_(share[rows]))
            du1 = dg @ b1[e]
            dA1[e] = du1.mT @ x[token]
            dB1[e] = dg.mT @ u1[rows]
            if dx is not None:
                dx.index_add_(0, token, torch.addmm(dg @ first.weight[e], du1, a1[e]))
        dweights = torch.empty(order.shape, dtype=weights.dtype, device=weights.device)
        dweights[order] = dshare[:, 0].to(weights.dtype)
        dB1.mul_(first.scaling)
        dB2.mul_(second.scaling)
        return dx, dweights.view(weights.shape), dA1, dB1, dA2, dB2, None, None, None, None


def _project(x: Tensor, e: int, frozen: _Frozen, a: Tensor, b: Tensor, *, u: Tensor, y: Tensor) -> None:
    """u = x·Aₑᵀ and y = x·Wₑᵀ + u·(sBₑ)ᵀ + bₑ, written where the caller keeps them."""
    torch.mm(x, a[e].mT, out=u)
    torch.mm(x, frozen.weight[e].mT, out=y)
    y.addmm_(u, b[e].mT)
    if frozen.bias is not None:
        y.add_(frozen.bias[e])


def _gated(gate: Callable[[Tensor], Tensor], g: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """h = gate(g), computed again, and what turns the gradient of h into that of g."""
    with torch.enable_grad():
        leaf = g.detach().requires_grad_()
        h = gate(leaf)

    def back(dh: Tensor) -> Tensor:
        return torch.autograd.grad(h, leaf, dh)[0]

    return h.detach(), back
