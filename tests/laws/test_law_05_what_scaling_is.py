"""Law 5. Under Adam, with eps corrected and neither clipping nor decay, scaling ×k is lr_B ×k, and is (init of A, lr_A)
×k. For powers of two every product is exact, so the three runs have the same losses to the bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.laws.plain_loop import Rates, train
from tests.tiny import tiny_model

from lorawise.lora import LoraConfig, inject

LR, EPS, STEPS = 1e-3, 1e-8, 12


def _losses(scaling: float, rates: Rates, *, gain: float, dtype: torch.dtype) -> torch.Tensor:
    model = tiny_model("llama", dtype=dtype, num_hidden_layers=1)
    adapters = inject(model, LoraConfig(r=4, scaling=scaling, target_modules="attention"))
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.lora_A.mul_(gain)
    return train(model, adapters, STEPS, [rates])


def _three_ways(k: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    by_scaling = _losses(k, Rates(A=LR, B=LR, eps_a=EPS, eps_b=EPS), gain=1.0, dtype=dtype)
    by_rate = _losses(1.0, Rates(A=LR, B=k * LR, eps_a=EPS, eps_b=EPS / k), gain=1.0, dtype=dtype)
    by_init = _losses(1.0, Rates(A=k * LR, B=LR, eps_a=EPS / k, eps_b=EPS), gain=k, dtype=dtype)
    return by_scaling, by_rate, by_init


@settings(max_examples=4, deadline=None)
@given(power=st.sampled_from([-2, -1, 1, 2, 3]))
def test_scaling_by_a_power_of_two_equals_the_rates_to_the_bit(power: int) -> None:
    by_scaling, by_rate, by_init = _three_ways(2.0**power, torch.float32)
    assert torch.equal(by_scaling, by_rate)
    assert torch.equal(by_scaling, by_init)
    plain = _losses(1.0, Rates(A=LR, B=LR, eps_a=EPS, eps_b=EPS), gain=1.0, dtype=torch.float32)
    assert not torch.allclose(plain, by_scaling, rtol=1e-5)


@settings(max_examples=4, deadline=None)
@given(k=st.floats(0.2, 8.0))
def test_scaling_by_any_factor_equals_the_rates_to_rounding(k: float) -> None:
    by_scaling, by_rate, by_init = _three_ways(k, torch.float64)
    torch.testing.assert_close(by_scaling, by_rate, rtol=0, atol=1e-9)
    torch.testing.assert_close(by_scaling, by_init, rtol=0, atol=1e-9)


def test_scaling_is_not_both_rates() -> None:
    k = 4.0
    by_scaling, _, _ = _three_ways(k, torch.float64)
    both = _losses(1.0, Rates(A=k * LR, B=k * LR, eps_a=EPS, eps_b=EPS), gain=1.0, dtype=torch.float64)
    assert (by_scaling[-1] - both[-1]).abs() > 1e-4
