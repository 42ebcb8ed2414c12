"""Adapted experts of every family equal the family's own class over dense weights W + s·B·A, in float64; and PEFT."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.peft_oracle import IDS, peft_injected, quiet_peft
from tests.tiny_experts import EXPERT_FAMILIES, tiny_mixture
from torch import Tensor, nn

from lorawise.base.errors import AdapterError
from lorawise.lora.experts import ExpertUpdate, adapted_experts

R, SCALING = 3, 1.5


def _model(family: str, dtype: torch.dtype) -> nn.Module:
    return tiny_mixture(family, dtype).requires_grad_(False)


def _experts(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if "Experts" in type(module).__name__}


def _update(experts: nn.Module, key: str, draw: torch.Generator) -> ExpertUpdate:
    weight = experts.get_parameter(key)
    count, out, width = (weight.mT if experts.is_transposed else weight).shape
    A = torch.randn(count, R, width, generator=draw, dtype=weight.dtype)
    B = torch.randn(count, out, R, generator=draw, dtype=weight.dtype)
    return ExpertUpdate(A=A.mul_(0.3).requires_grad_(), B=B.mul_(0.3).requires_grad_(), scaling=SCALING)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_values_and_gradients_equal_the_familys_own_class_over_dense_experts(family: str) -> None:
    experts = next(iter(_experts(_model(family, torch.float64)).values()))
    experts.config._experts_implementation = "eager"  # type: ignore[union-attr]
    draw = torch.Generator().manual_seed(1)
    updates = {key: _update(experts, key, draw) for key in ("gate_up_proj", "down_proj")}
    x = torch.randn(10, 32, generator=draw, dtype=torch.float64).requires_grad_()
    index = torch.stack([torch.randperm(3, generator=draw)[:2] for _ in range(10)])  # experts 3 and up stay idle
    weights = torch.rand(10, 2, generator=draw, dtype=torch.float64).requires_grad_()
    leaves = [x, weights, *(t for u in updates.values() for t in (u.A, u.B))]
    ours = adapted_experts(experts, x, index, weights, gate_up=updates["gate_up_proj"], down=updates["down_proj"])
    dense = {}
    for key, update in updates.items():
        delta = update.scaling * update.B @ update.A
        dense[key] = experts.get_parameter(key) + (delta.mT if experts.is_transposed else delta)
    theirs: Tensor = torch.func.functional_call(experts, dense, (x, index, weights))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    dy = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    for mine, reference in zip(
        torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


Pairs = dict[tuple[str, str], tuple[ExpertUpdate, nn.Linear, nn.Linear]]


def _beside_peft(family: str) -> tuple[nn.Module, nn.Module, Pairs]:
    """A model with our experts, PEFT's with the same factors, and (module, parameter) → ours, PEFT's A and B."""
    from peft.tuners.lora.layer import ParamWrapper

    base = _model(family, torch.float32)
    names = list(_experts(base))
    own = copy.deepcopy(base)
    targets = [f"{name}.{key}" for name in names for key in ("gate_up_proj", "down_proj")]
    peft = peft_injected(base, seed=2, r=R, lora_alpha=3 * R, target_parameters=targets, target_modules=[])
    pairs: Pairs = {}
    for name, module in peft.named_modules():
        if isinstance(module, ParamWrapper):
            place = name.removeprefix("base_model.model.").replace(".base_layer", "")
            a, b, count = module.lora_A["default"], module.lora_B["default"], module.num_experts
            update = ExpertUpdate(
                A=a.weight.detach().reshape(count, R, -1).clone().requires_grad_(),
                B=b.weight.detach().reshape(-1, R, count).permute(2, 0, 1).clone().requires_grad_(),
                scaling=module.scaling["default"],
            )
            pairs[place, module.parameter_name] = update, a, b
    assert len(pairs) == len(targets)
    for name, experts in _experts(own).items():
        updates = pairs[name, "gate_up_proj"][0], pairs[name, "down_proj"][0]

        def forward(x: Tensor, i: Tensor, w: Tensor, m: nn.Module = experts, p: Any = updates) -> Tensor:
            return adapted_experts(m, x, i, w, gate_up=p[0], down=p[1])

        experts.forward = forward  # type: ignore[method-assign]
    return own, peft, pairs


def _compare(pairs: Pairs, of: Callable[[Tensor], Tensor | None], atol: float) -> None:
    for update, a, b in pairs.values():
        A, B = of(update.A), of(update.B)
        assert A is not None
        assert B is not None
        torch.testing.assert_close(A.reshape(-1, A.shape[-1]), of(a.weight), rtol=1e-3, atol=atol)
        torch.testing.assert_close(B.permute(1, 2, 0).reshape(B.shape[1], -1), of(b.weight), rtol=1e-3, atol=atol)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_logits_and_gradients_equal_pefts_target_parameters(family: str) -> None:
    own, peft, pairs = _beside_peft(family)
    with quiet_peft():
        ours, theirs = own(input_ids=IDS % 64, labels=IDS % 64), peft(input_ids=IDS % 64, labels=IDS % 64)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    ours.loss.backward()
    theirs.loss.backward()
    _compare(pairs, lambda tensor: tensor.grad, atol=1e-4)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_twenty_steps_equal_pefts(family: str) -> None:
    own, peft, pairs = _beside_peft(family)
    losses = []
    for model, held in (
        (own, [t for update, _, _ in pairs.values() for t in (update.A, update.B)]),
        (peft, [layer.weight for _, a, b in pairs.values() for layer in (a, b)]),
    ):
        optimizer = torch.optim.SGD(held, lr=0.02)
        losses.append([])
        for _ in range(20):
            loss = model(input_ids=IDS % 64, labels=IDS % 64).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0] - 1e-3
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-4)
    _compare(pairs, lambda tensor: tensor.detach(), atol=1e-4)


def test_factors_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"A .* and B"):
        ExpertUpdate(A=torch.zeros(4, 2, 8), B=torch.zeros(4, 8, 3), scaling=1.0)


def test_an_expert_that_no_row_reached_gets_a_zero_gradient_and_nothing_dense_is_kept() -> None:
    experts = next(iter(_experts(_model("qwen3_moe", torch.float32)).values()))
    draw = torch.Generator().manual_seed(1)
    gate_up, down = _update(experts, "gate_up_proj", draw), _update(experts, "down_proj", draw)
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    x = torch.randn(10, 32, generator=draw)
    index, weights = torch.tensor([[0, 2]] * 10), torch.rand(10, 2, generator=draw)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = adapted_experts(experts, x, index, weights, gate_up=gate_up, down=down)
    y.square().sum().backward()
    for factor in (gate_up.A, gate_up.B, down.A, down.B):
        assert factor.grad is not None
        assert [bool(part.any()) for part in factor.grad] == [True, False, True] + [False] * 5
    rows, factors = 20, sum(t.numel() for t in (gate_up.A, gate_up.B, down.A, down.B))
    assert sum(t.numel() for t in kept) == x.numel() + weights.numel() + rows * (2 * 24 + 2 * R) + factors
