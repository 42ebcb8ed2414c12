"""Adapters on fused experts obey the laws that adapters on linear layers obey, on six families."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.laws.plain_loop import Rates, rouse, train
from tests.tiny_experts import EXPERT_FAMILIES, SPARSE_LAYERS, tiny_mixture
from torch import Tensor, nn

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.lora import LoraConfig, attach, eject, inject, trainable_parameters
from lorawise.lora.experts_bank import ExpertsBank
from lorawise.lora.wrapping import unwrapped

EXPERTS = LoraConfig(r=3, scaling=1.5, target_modules=("experts",))


def ids(rows: int = 2, length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, rows: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids() if rows is None else rows).logits
    return found


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("targets", [("experts",), "mlp", "all-linear", r".*experts\.down_proj", ("gate_up_proj",)])
def test_a_fresh_adapter_on_experts_changes_nothing_but_roundings(family: str, targets: str) -> None:
    model = tiny_mixture(family, torch.float64)
    base = logits(model)
    before = {name: (module, module.training) for name, module in model.named_modules()}
    values = {name: parameter.clone() for name, parameter in model.named_parameters()}
    adapters = inject(model, LoraConfig(r=3, scaling=8.0, target_modules=targets))
    assert any(isinstance(layer, ExpertsBank) for layer in adapters.layers.values())
    torch.testing.assert_close(logits(model), base, rtol=1e-11, atol=1e-11)
    eject(model)
    assert {name: (module, module.training) for name, module in model.named_modules()} == before
    assert all(torch.equal(parameter, values[name]) for name, parameter in model.named_parameters())
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_merged_experts_answer_the_same_and_unmerging_restores_every_bit(family: str) -> None:
    model = tiny_mixture(family, torch.float64)
    base = logits(model)
    adapters = inject(model, LoraConfig(r=3, target_modules="all-linear"))
    rouse(adapters)
    apart = logits(model)
    assert (apart - base).abs().max() > 1e-2
    adapters.merge()
    torch.testing.assert_close(logits(model), apart, rtol=1e-9, atol=1e-9)
    adapters.unmerge()
    assert torch.equal(logits(model), apart)
    eject(model)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_a_slot_of_experts_has_the_losses_it_has_alone(family: str, dtype: torch.dtype, tolerance: float) -> None:
    steps = 200 if family in ("mixtral", "gpt_oss") else 20
    settings = [
        LoraConfig(r=3, scaling=2.0, target_modules="all-linear"),
        LoraConfig(r=1, scaling=4.0, target_modules=(r"experts.down_proj",), seed=1),
        LoraConfig(r=5, scaling=0.5, target_modules="mlp", init="gaussian", rslora=True, seed=2),
    ]
    rates = [Rates(), Rates(A=3e-3, B=3e-3), Rates(A=1e-3, B=4e-3)]
    sparse = {"num_hidden_layers": 1} | ({"first_k_dense_replace": 0} if family == "deepseek_v3" else {})
    sparse |= {"layer_types": ["full_attention"]} if family == "gpt_oss" else {}

    def trained(some: list[LoraConfig], at: list[Rates]) -> Tensor:
        model = tiny_mixture(family, dtype, std=0.2, **sparse).train()
        return train(model, inject(model, some), steps, at, data=lambda step: ids(seed=step % 3))

    together = trained(settings, rates)
    assert (together[0] - together[(steps - 1) // 3 * 3]).min() > 1e-4  # they did learn, on the same rows
    for i, (setting, rate) in enumerate(zip(settings, rates, strict=True)):
        torch.testing.assert_close(together[:, i], trained([setting], [rate])[:, 0], rtol=0, atol=tolerance)


def test_beside_a_slot_of_nan_the_experts_of_the_others_stay_the_same_to_the_bit() -> None:
    ends = []
    for spoiled in (False, True):
        model = tiny_mixture("qwen3_moe", std=0.1).train()
        adapters = inject(model, [EXPERTS, EXPERTS.replace(r=2)])
        if spoiled:
            with torch.no_grad():
                next(iter(adapters.layers.values())).lora_A[1] = float("nan")
        ends.append((train(model, adapters, 5, [Rates(), Rates()], data=lambda step: ids(seed=step)), adapters))
    (sane, one), (mixed, other) = ends
    assert mixed[:, 1].isnan().any()
    assert torch.equal(sane[:, 0], mixed[:, 0])
    for mine, theirs in zip(one.weights("0").layers.values(), other.weights("0").layers.values(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    targets=st.tuples(*[st.sampled_from(["mlp", ("gate_up_proj",), ("experts.down_proj",)])] * 2),
)
def test_a_stack_on_experts_is_the_sum_of_the_deltas(ranks, weights, targets) -> None:
    model = tiny_mixture("gpt_oss", torch.float64)
    configs = [LoraConfig(r=r, target_modules=names) for r, names in zip(ranks, targets, strict=True)]
    adapters = inject(model, configs, names=("a", "b"))
    rouse(adapters)
    mix = dict(zip(("a", "b"), weights, strict=True))
    adapters.stack(mix)
    apart = logits(model)
    adapters.merge(mix)
    torch.testing.assert_close(logits(model), apart, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_what_is_counted_is_what_trains_and_every_expert_has_its_own(family: str) -> None:
    model = tiny_mixture(family)
    base = sum(parameter.numel() for parameter in model.parameters())
    adapters = inject(model, LoraConfig(r=3, target_modules=("experts",), rank_pattern={r"down_proj": 2}))
    count = 4 if family == "mixtral" else 8
    expected = SPARSE_LAYERS[family] * count * (3 * (32 + 48) + 2 * (24 + 32))
    counted = trainable_parameters(model)
    assert (counted.trainable, counted.total) == (expected, base + expected)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    for layer in adapters.layers.values():
        assert all(not torch.equal(one, other) for one, other in pairwise(layer.lora_A[0]))


def test_adapters_of_other_targets_live_beside_each_other_and_leave_again() -> None:
    model = tiny_mixture("mixtral", torch.float64)
    base = logits(model)
    found = {}
    for name, targets in {"up": ("gate_up_proj",), "down": ("experts.down_proj",), "all": "all-linear"}.items():
        adapters = inject(model, LoraConfig(r=2, target_modules=targets))
        rouse(adapters)
        found[name] = (adapters.weights("default"), logits(model))
        eject(model)
    adapters = attach(model, {name: weights for name, (weights, _) in found.items()})
    for name, (_, expected) in found.items():
        adapters.use(name)
        torch.testing.assert_close(logits(model), expected, rtol=1e-10, atol=1e-10)
    adapters.remove("up")
    adapters.use("down")
    torch.testing.assert_close(logits(model), found["down"][1], rtol=1e-10, atol=1e-10)
    adapters.remove("all")
    adapters.use("down")
    assert [type(layer) for layer in adapters.layers.values()] == [ExpertsBank] * 2
    torch.testing.assert_close(logits(model), found["down"][1], rtol=1e-10, atol=1e-10)
    eject(model)
    assert torch.equal(logits(model), base)


def test_the_router_stays_frozen_unless_it_is_named() -> None:
    model = tiny_mixture("qwen3_moe").train()
    adapters = inject(model, LoraConfig(r=2, target_modules="all-linear"))
    assert not any(name.endswith("mlp.gate") for name in adapters.layers)
    eject(model)
    adapters = inject(model, LoraConfig(r=2, target_modules=("experts",), modules_to_save=("mlp.gate",)))
    rouse(adapters, std=0.3)
    model(input_ids=ids(), labels=ids()).loss.backward()
    routers = dict(adapters.full_parameters())
    assert sorted(routers) == ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in routers.values())


def test_what_cannot_be_done_with_experts_is_refused_by_name() -> None:
    model = tiny_mixture("mixtral")
    with pytest.raises(ConfigError, match=r"dropout=0.1 on fused experts: model.layers.0.mlp.experts.gate_up_proj"):
        inject(model, LoraConfig(dropout=0.1, target_modules="mlp"))
    adapters = inject(model, LoraConfig(r=2, target_modules=("experts",)))
    weights = adapters.weights("default")
    eject(model)
    other = tiny_mixture("mixtral", num_local_experts=2)
    with pytest.raises(AdapterError, match=r"gate_up_proj: A \(4, 2, 32\).*expected \(2, 2, 32\)"):
        attach(other, {"a": weights})
    inject(model, [EXPERTS, EXPERTS])
    with pytest.raises(AdapterError, match="15 tokens for 2 slots"):
        model(input_ids=ids(3, 5))


def test_experts_without_a_gate_or_outside_the_interface_are_refused_by_name() -> None:
    model = tiny_mixture("mixtral")
    for experts in (module for module in model.modules() if type(module).__name__ == "MixtralExperts"):
        unwrapped(experts).has_post_expert_norm = True
    for targets in ("mlp", "all-linear", ("experts",), ("gate_up_proj",), r".*\.experts"):
        with pytest.raises(AdapterError, match=r"(?s)fused experts.*MixtralExperts.*attention"):
            inject(model, LoraConfig(target_modules=targets))
    assert inject(model, LoraConfig(exclude_modules=("experts",))).layers
