"""How A starts."""

import math

import pytest
import torch
from tests.tiny import tiny_model

from lorawise.base.errors import ConfigError
from lorawise.lora import LoraConfig, inject
from lorawise.lora.inits import INITS, generator_for


@pytest.mark.parametrize("init", list(INITS))
def test_every_init_has_kaimings_standard_deviation(init: str) -> None:
    A = INITS[init](64, 2_000, generator_for(0, "layer"))
    assert A.std().item() == pytest.approx(1 / math.sqrt(3 * 2_000), rel=0.02)
    assert abs(A.mean().item()) < 1e-3


def test_kaiming_is_what_torch_and_peft_draw() -> None:
    ours = INITS["kaiming"](8, 50, torch.Generator().manual_seed(1))
    theirs = torch.nn.init.kaiming_uniform_(
        torch.empty(8, 50), a=math.sqrt(5), generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_start_belongs_to_its_seed_and_module_alone() -> None:
    def start(configs, preset="attention"):
        adapters = inject(tiny_model("llama"), [c.replace(target_modules=preset) for c in configs])
        return adapters.weights(adapters.names[-1]).layers["model.layers.1.self_attn.v_proj"][0]

    state = torch.get_rng_state()
    one = start([LoraConfig(r=4, seed=5)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, start([LoraConfig(r=8), LoraConfig(r=4, seed=5)], preset="all-linear"))
    assert not torch.equal(one, start([LoraConfig(r=4, seed=6)]))
    adapters = inject(tiny_model("llama"), LoraConfig(r=4))
    drawn = [layer.lora_A for layer in adapters.layers.values() if layer.in_width == 32]
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_an_unknown_init_says_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kaiming'"):
        LoraConfig(init="kaimin")
