"""Twenty QLoRA steps lose what PEFT loses over bitsandbytes' own layers, from the same A.

Rows are whole blocks of 64: bitsandbytes' CPU kernel is wrong for others.
"""

from pathlib import Path

import pytest
import torch
from tests.parity.test_parity_training import _losses
from tests.peft_oracle import peft_loaded
from tests.workbench import tiny_folder
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorawise import LoraConfig
from lorawise.lora import inject
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model
from lorawise.store import save_adapter

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma3"])
@pytest.mark.parametrize("double", [True, False])
def test_twenty_steps_over_nf4_lose_what_peft_loses(family: str, double: bool, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", family, **WIDE)
    ours = open_model(resolve_model(base), dtype="nf4", compute_dtype="float32", double_quant=double)
    adapters = inject(ours, LoraConfig(r=4, scaling=2.0, target_modules="all-linear"))
    save_adapter(tmp_path / "start", adapters.weights("default"), base="b")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    quantised = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    theirs = peft_loaded(quantised, tmp_path / "start", is_trainable=True).train()
    found = _losses(ours, [parameter for _, parameter in adapters.trainable()])
    expected = _losses(theirs, [parameter for parameter in theirs.parameters() if parameter.requires_grad])
    assert expected[-1] < expected[0] - 0.05
    assert found == pytest.approx(expected, abs=1e-4)
