"""As many trainable parameters as PEFT, for every preset of every family, and for real shapes."""

import peft
import pytest
import torch
from tests.parity.targets import CASES, PRESETS, peft_targets
from tests.peft_oracle import quiet_peft
from tests.tiny import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig

from lorawise import LoraConfig
from lorawise.lora import eject, inject, trainable_parameters

LLAMA_31_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4_096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


def test_every_family_and_preset_is_compared() -> None:
    assert set(CASES) == {(family, preset) for family in FAMILIES for preset in PRESETS}


@pytest.mark.parametrize(("family", "preset"), CASES)
def test_a_preset_trains_as_many_parameters_as_peft(family: str, preset: str) -> None:
    ours = tiny_model(family)
    for r in (3, 8):
        config = LoraConfig(r=r, target_modules=preset)
        with quiet_peft():
            wanted = {"target_modules": peft_targets(family, preset), "fan_in_fan_out": family == "gpt2"}
            theirs = peft.get_peft_model(tiny_model(family), peft.LoraConfig(r=r, task_type="CAUSAL_LM", **wanted))
        inject(ours, config)
        counted = trainable_parameters(ours)
        assert (counted.trainable, counted.total) == theirs.get_nb_trainable_parameters()
        assert counted.trainable == sum(p.numel() for p in ours.parameters() if p.requires_grad)
        eject(ours)


@pytest.mark.parametrize(
    ("r", "preset", "trainable"),
    [(16, "attention", 13_631_488), (8, "qv", 3_407_872), (16, "all-linear", 41_943_040), (64, "mlp", 113_246_208)],
)
def test_the_real_llama_has_the_guides_count(r: int, preset: str, trainable: int) -> None:
    with torch.device("meta"):
        ours = AutoModelForCausalLM.from_config(LLAMA_31_8B)
        theirs = AutoModelForCausalLM.from_config(LLAMA_31_8B)
        inject(ours, LoraConfig(r=r, target_modules=preset))
        with quiet_peft():
            wrapped = peft.get_peft_model(
                theirs, peft.LoraConfig(r=r, target_modules=peft_targets("llama", preset), task_type="CAUSAL_LM")
            )
    counted = trainable_parameters(ours)
    assert (counted.trainable, counted.total) == wrapped.get_nb_trainable_parameters()
    assert counted.trainable == trainable
    assert counted.total == 8_030_261_248 + trainable
    assert next(ours.parameters()).is_meta
