"""The same logits as PEFT in both directions, for every preset of every family (fp32, 1e-5), through files."""

from pathlib import Path

import pytest
import torch
from tests.parity.targets import CASES, peft_targets
from tests.peft_oracle import adapted_by_peft, logits_of, peft_injected, peft_loaded, peft_saved
from tests.tiny import tiny_model

from lorawise import LoraConfig
from lorawise.lora import attach, eject, inject
from lorawise.lora.wrapping import base_modules
from lorawise.store import load_adapter, save_adapter


@pytest.mark.parametrize(("family", "preset"), CASES)
def test_logits_are_the_same_both_ways(family: str, preset: str, tmp_path: Path) -> None:
    ours = tiny_model(family)
    base = logits_of(ours)
    theirs = peft_injected(tiny_model(family), r=4, lora_alpha=6, target_modules=peft_targets(family, preset))
    weights = load_adapter(peft_saved(theirs, tmp_path / "theirs"))
    attach(ours, {"theirs": weights})
    expected = logits_of(theirs)
    assert (expected - base).abs().max() > 1e-4
    torch.testing.assert_close(logits_of(ours), expected, atol=1e-5, rtol=1e-5)
    eject(ours)
    torch.testing.assert_close(logits_of(ours), base, atol=0, rtol=0)

    config = LoraConfig(r=3, scaling=1.3, rslora=preset == "mlp", target_modules=preset)
    adapters = inject(ours, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for entry in adapters.bank_parameters():
            entry.parameter.add_(0.2 * torch.randn(entry.parameter.shape, generator=generator))
    names = [name for name, _ in base_modules(ours)]
    save_adapter(tmp_path / "ours", adapters.weights("default"), base="b", modules=names)
    read = peft_loaded(tiny_model(family), tmp_path / "ours")
    torch.testing.assert_close(logits_of(read), logits_of(ours), atol=1e-5, rtol=1e-5)
    assert set(adapted_by_peft(read)) == set(adapters.layers)
