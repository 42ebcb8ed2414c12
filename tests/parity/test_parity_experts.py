"""Adapters on attention and experts against PEFT: the same losses for 20 steps of AdamW from the same file, the router
frozen in both (fp32, 1e-4)."""

from pathlib import Path

import pytest
from tests.parity.test_parity_training import _losses
from tests.peft_oracle import peft_loaded
from tests.tiny_experts import EXPERT_FAMILIES, tiny_mixture

from lorawise import LoraConfig
from lorawise.lora import inject, trainable_parameters
from lorawise.store import save_adapter


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_twenty_steps_over_experts_lose_what_peft_loses(family: str, tmp_path: Path) -> None:
    ours, theirs = (tiny_mixture(family, std=0.1, vocab_size=256).train() for _ in range(2))
    adapters = inject(ours, LoraConfig(r=4, scaling=2.0, target_modules=r".*self_attn\.\w+_proj\w*|.*\.experts"))
    save_adapter(tmp_path / "start", adapters.weights("default"), base="b")
    wrapped = peft_loaded(theirs, tmp_path / "start", is_trainable=True)
    counted = trainable_parameters(ours)
    assert (counted.trainable, counted.total) == wrapped.get_nb_trainable_parameters()
    found = _losses(ours, [parameter for _, parameter in adapters.trainable()])
    expected = _losses(wrapped, [parameter for parameter in wrapped.parameters() if parameter.requires_grad])
    assert min(expected[16:]) < expected[0] - 0.02
    assert found == pytest.approx(expected, abs=1e-4)
    assert not any("gate" in name.split(".") for name in adapters.layers)
