"""Law 1. B starts at zero, so a fresh adapter gives the base's logits to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.laws.plain_loop import token_ids
from tests.tiny import FAMILIES, tiny_model

from lorawise.lora import LoraConfig, inject

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_fresh_adapter_changes_nothing(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    base = model(token_ids()).logits
    inject(model, LoraConfig(r=4, scaling=8.0, dropout=0.2)).draw(0)
    assert torch.equal(model(token_ids()).logits, base)


@settings(max_examples=15, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    preset=st.sampled_from(["qv", "attention", "mlp", "all-linear", ["lm_head", "q_proj"], ["embed_tokens"]]),
    init=st.sampled_from(["kaiming", "gaussian"]),
    rslora=st.booleans(),
    trains=st.booleans(),
)
def test_a_fresh_bank_changes_nothing_whatever_its_settings(ranks, preset, init, rslora, trains) -> None:
    model = tiny_model("llama")
    base = model(token_ids().repeat(len(ranks), 1)).logits
    adapters = inject(
        model,
        [
            LoraConfig(r=r, target_modules=preset, init=init, rslora=rslora, dropout=0.3, seed=i)
            for i, r in enumerate(ranks)
        ],
    )
    adapters.draw(0)
    assert torch.equal(model.train(trains)(token_ids().repeat(len(ranks), 1)).logits, base)


def test_whole_modules_and_biases_start_as_copies_of_the_base() -> None:
    model = tiny_model("gpt2")
    base = model(token_ids()).logits
    inject(model, LoraConfig(modules_to_save=("ln_f", "lm_head"), bias="all"))
    assert torch.equal(model(token_ids()).logits, base)
