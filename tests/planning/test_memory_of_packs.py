"""Banks of different settings: what is predicted is within 5 % of the real step's trace, and never below it."""

import random

import pytest
from tests.planning.shapes import config_of, facts_of

from lorawise.lora.config import LoraConfig
from lorawise.planning.memory import Workload, predict
from lorawise.planning.memory.bank import MARGIN, padded
from lorawise.training.trace import trace

SHAPE = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 768}


def a_pack(draw: random.Random) -> list[LoraConfig]:
    """2 to 16 settings of any rank and targets, some of the first layer alone."""
    return [
        LoraConfig(
            r=draw.choice((1, 2, 4, 8, 16, 32, 64)),
            scaling=2.0 ** draw.randint(-2, 3),
            target_modules=draw.choice(("qv", "attention", "mlp", "all-linear", ("q_proj", "down_proj"))),
            layers=draw.choice((None, None, None, (0,))),
        )
        for _ in range(draw.randint(2, 16))
    ]


def errors(numbers: range) -> list[float]:
    """What was predicted too much, as a share of it, of the packs drawn with these numbers; below 0: too little."""
    model = config_of("llama", **SHAPE)
    facts = facts_of(model, "LlamaForCausalLM")
    found = []
    for number in numbers:
        draw = random.Random(number)
        configs = a_pack(draw)
        workload = Workload(tokens=draw.choice((64, 256, 512)), length=64)
        predicted = predict(facts, padded(facts, configs), workload=workload, slots=len(configs))
        met = trace(model, configs[0], beside=configs[1:], workload=workload).memory
        found.append(1 - met.allocated / predicted.allocated)
    return found


@pytest.mark.parametrize(
    "numbers", [range(4), pytest.param(range(4, 100), marks=pytest.mark.slow)], ids=["a few", "the rest of a hundred"]
)
def test_random_packs_never_take_more_than_predicted_and_are_within_five_percent(numbers):
    found = errors(numbers)
    assert min(found) >= 1 - MARGIN
    assert max(found) <= 0.05


def test_a_bank_of_alike_settings_is_that_setting_in_as_many_slots():
    facts = facts_of(config_of("llama", **SHAPE), "LlamaForCausalLM")
    one, workload = LoraConfig(r=8), Workload(tokens=128)
    same = [predict(facts, config, workload=workload, slots=3) for config in (one, padded(facts, [one] * 3))]
    assert same[0].allocated == same[1].allocated
