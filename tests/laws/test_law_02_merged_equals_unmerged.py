"""Law 2. Merged weights answer as the adapter beside them did; unmerging gives the base back, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.laws.plain_loop import rouse, token_ids
from tests.tiny import FAMILIES, tiny_model

from lorawise.lora import LoraConfig, inject


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merging_answers_the_same_and_unmerging_restores_every_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    adapters = inject(model, LoraConfig(r=4, bias="lora_only"))
    rouse(adapters)
    apart = model(token_ids()).logits.float()
    adapters.merge()
    merged = model(token_ids()).logits.float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert (merged - apart).norm() <= tolerance * apart.norm()
    adapters.unmerge()
    assert torch.equal(model(token_ids()).logits.float(), apart)
    base = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(base[name], before) for name, before in weights.items())


@settings(max_examples=10, deadline=None)
@given(
    r=st.integers(1, 8),
    scaling=st.sampled_from([0.25, 1.0, 4.0]),
    weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    factor=st.sampled_from([0.5, 1.0, -1.0]),
)
def test_a_merged_mix_equals_the_same_stack(r, scaling, weights, factor) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    adapters = inject(
        model, [LoraConfig(r=r, scaling=scaling), LoraConfig(r=3, target_modules="mlp")], names=("a", "b")
    )
    rouse(adapters)
    adapters.set_scale("a", factor)
    mix = dict(zip(("a", "b"), weights, strict=True))
    adapters.stack(mix)
    apart = model(token_ids()).logits
    adapters.merge(mix)
    torch.testing.assert_close(model(token_ids()).logits, apart, rtol=1e-9, atol=1e-9)
    adapters.unmerge()
    assert torch.equal(model(token_ids()).logits, apart)


def test_the_merged_weight_is_the_fp32_sum_rounded_once() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    adapters = inject(model, LoraConfig(r=4, target_modules=("q_proj",)))
    rouse(adapters, std=0.02)
    layer = next(iter(adapters.layers.values()))
    A, B = layer.lora_A.detach()[0], layer.lora_B.detach()[0]
    before = layer.base_layer.weight.detach().clone()
    adapters.merge()
    assert torch.equal(layer.base_layer.weight, (before.float() + 2.0 * (B @ A)).bfloat16())
