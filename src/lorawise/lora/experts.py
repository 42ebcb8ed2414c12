"""A layer of fused experts with a low-rank update of every expert, rows sorted by expert.

With e the experts a token's router chose and w their weights:

    h = gate((W_gate_up,e + s·B·A)·x)        y = Σₑ w · (W_down,e + s·B·A)·h

Shapes: x (T, hidden), index and weights (T, k), A (E, r, in), B (E, out, r). A model's own class says how its weights
lie (transposed, with biases, gate and up interleaved) and how the gate is applied; it is asked, not copied.
Kept for backward a projection: its sorted input (T·k, in), u (T·k, r), and A and sB; never a delta of E·out·in values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorawise.base.errors import AdapterError
from lorawise.lora.grouped import grouped_lora_linear


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


def adapted_experts(
    experts: nn.Module, x: Tensor, index: Tensor, weights: Tensor, *, gate_up: ExpertUpdate, down: ExpertUpdate
) -> Tensor:
    """y (T, hidden) of a transformers experts module with both its projections updated.

    `AdapterError` for experts without a gate, or spread over devices.
    """
    if not experts.has_gate or experts._is_expert_parallel or experts.has_post_expert_norm:
        raise AdapterError(
            f"{type(experts).__name__} cannot be adapted: its experts have no gate, a norm of their own, or are "
            "spread over devices",
            expected="gated experts, fused as gate_up_proj and down_proj, whole on one device",
            cure="target attention (the preset 'attention' or 'qv')",
        )
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts: list[int] = torch.bincount(flat, minlength=gate_up.A.shape[0]).tolist()
    token = order // index.shape[-1]
    h = _projected(experts, "gate_up_proj", x[token], counts, gate_up)
    h = experts._apply_gate(h)  # type: ignore[operator]
    h = _projected(experts, "down_proj", h, counts, down)
    weighted = h * weights.reshape(-1)[order, None]
    return torch.zeros_like(x).index_add(0, token, weighted.to(x.dtype))


def _projected(experts: nn.Module, key: str, x: Tensor, counts: list[int], update: ExpertUpdate) -> Tensor:
    weight = experts.get_parameter(key)
    bias = experts.get_parameter(f"{key}_bias") if experts.has_bias else None
    stored = weight.mT if experts.is_transposed else weight
    return grouped_lora_linear(x, counts, stored, bias, update.A, update.B, update.scaling)
