"""The same losses as PEFT for 20 steps of AdamW from the same A (fp32, 1e-4)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.peft_oracle import peft_loaded
from tests.tiny import FAMILIES, tiny_model

from lorawise import LoraConfig
from lorawise.lora import inject
from lorawise.store import save_adapter

BATCHES = torch.randint(3, 256, (20, 2, 24), generator=torch.Generator().manual_seed(0))


def _losses(model: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=2e-2, weight_decay=0.01)
    losses = []
    for step in range(len(BATCHES)):
        ids = BATCHES[step % 4]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_lose_what_peft_loses(family: str, tmp_path: Path) -> None:
    ours = tiny_model(family)
    adapters = inject(ours, LoraConfig(r=4, scaling=2.0, target_modules="all-linear"))
    save_adapter(tmp_path / "start", adapters.weights("default"), base="b")
    theirs = peft_loaded(tiny_model(family), tmp_path / "start", is_trainable=True)
    found = _losses(ours, [parameter for _, parameter in adapters.trainable()])
    expected = _losses(theirs, [parameter for parameter in theirs.parameters() if parameter.requires_grad])
    assert expected[-1] < expected[0] - 0.05
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_twenty_steps_with_biases_and_a_head_lose_what_peft_loses(bias: Any, tmp_path: Path) -> None:
    ours = tiny_model("qwen2")
    config = LoraConfig(r=4, scaling=2.0, target_modules="qv", bias=bias, modules_to_save=("lm_head",))
    adapters = inject(ours, config)
    save_adapter(tmp_path / "start", adapters.weights("default"), base="b")
    theirs = peft_loaded(tiny_model("qwen2"), tmp_path / "start", is_trainable=True)
    found = _losses(ours, [parameter for _, parameter in adapters.trainable()])
    expected = _losses(theirs, [parameter for parameter in theirs.parameters() if parameter.requires_grad])
    assert found == pytest.approx(expected, abs=1e-4)
