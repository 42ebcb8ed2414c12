import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_model
from torch.nn import Parameter

from lorawise.base.errors import ConfigError, RunError
from lorawise.lora import LoraConfig, inject
from lorawise.training.loop import trained_parameters
from lorawise.training.optimizer import FIRST_SCALE, GROWTH_INTERVAL, BankAdamW, SlotSettings, Trained

N, R, IN, OUT = 3, 2, 5, 4


def bank(n: int = N, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Trained]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.lora_A": (n, R, IN), "a.lora_B": (n, OUT, R), "b.lora_A": (n, R, OUT), "b.lora_B": (n, IN, R)}
    return [
        Trained(name=name, kind="A" if name.endswith("A") else "B", parameter=Parameter(_draw(shape, dtype, generator)))
        for name, shape in shapes.items()
    ]


def _draw(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def fill(parameters: list[Trained], step: int, *, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for trained in parameters:
        gradient = _draw(tuple(trained.parameter.shape), trained.parameter.dtype, generator)
        trained.parameter.grad.add_(gradient * scale)


SETTINGS = (
    SlotSettings(learning_rate=1e-2, weight_decay=0.1, clip=0.5),
    SlotSettings(learning_rate=3e-3, lora_plus_ratio=16.0, betas=(0.8, 0.95), eps=1e-6, clip=0.0),
    SlotSettings(learning_rate=0.1, weight_decay=0.01, clip=100.0),
)


@settings(max_examples=20, deadline=None)
@given(
    rate=st.floats(1e-5, 1.0),
    ratio=st.sampled_from([1.0, 4.0, 16.0]),
    decay=st.sampled_from([0.0, 0.1]),
    clip=st.sampled_from([0.0, 0.3, 1e3]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.9)]),
)
def test_one_slot_moves_as_torchs_adamw_does(rate, ratio, decay, clip, betas):
    ours, theirs = bank(1), bank(1)
    one = SlotSettings(learning_rate=rate, lora_plus_ratio=ratio, weight_decay=decay, clip=clip, betas=betas, eps=1e-8)
    optimizer = BankAdamW(ours, [one], scaled=False)
    shares = [ratio if t.kind == "B" else 1.0 for t in theirs]
    groups = [
        {"params": [t.parameter], "lr": rate * share, "eps": 1e-8 / share}
        for t, share in zip(theirs, shares, strict=True)
    ]
    reference = torch.optim.AdamW(groups, betas=betas, weight_decay=decay)
    for step in range(8):
        for t in theirs:
            t.parameter.grad = torch.zeros_like(t.parameter)
        fill(ours, step)
        fill(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_([t.parameter for t in theirs], clip or math.inf)
        for group, t in zip(reference.param_groups, theirs, strict=True):
            group["lr"] = rate * (ratio if t.kind == "B" else 1.0) * (1 - step / 10)
        reference.step()
        applied = optimizer.step([1 - step / 10])
        assert applied.norms[0] == pytest.approx(float(norm), rel=1e-12)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.parameter, other.parameter, rtol=1e-12, atol=1e-12)


def test_each_slot_of_a_bank_moves_as_it_would_alone():
    together = bank()
    optimizer = BankAdamW(together, SETTINGS, scaled=False)
    for step in range(6):
        fill(together, step)
        optimizer.step([1.0, 0.5, 0.9])
    for slot in range(N):
        alone = [
            Trained(name=t.name, kind=t.kind, parameter=Parameter(t.parameter.data[slot : slot + 1].clone()))
            for t in bank()
        ]
        solo = BankAdamW(alone, [SETTINGS[slot]], scaled=False)
        for step in range(6):
            whole = bank()
            for t in whole:
                t.parameter.grad = torch.zeros_like(t.parameter)
            fill(whole, step)
            for one, t in zip(alone, whole, strict=True):
                one.parameter.grad.add_(t.parameter.grad[slot : slot + 1])
            solo.step([[1.0, 0.5, 0.9][slot]])
        for one, t in zip(alone, together, strict=True):
            torch.testing.assert_close(one.parameter[0], t.parameter[slot], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_slot_that_is_not_finite_stops_and_leaves_the_others_their_bits(dtype, bad):
    broken, healthy = bank(dtype=dtype), bank(dtype=dtype)
    first, second = (BankAdamW(p, SETTINGS, scaled=False) for p in (broken, healthy))
    for step in range(5):
        fill(broken, step)
        fill(healthy, step)
        if step == 2:
            before = [t.parameter[1].clone() for t in broken]
            broken[3].parameter.grad[1, 0, 0] = bad
        applied = first.step([1.0] * N)
        second.step([1.0] * N)
        assert applied.moved == (True, step < 2, True)
    assert first.alive == [True, False, True]
    for own, other, frozen in zip(broken, healthy, before, strict=True):
        assert torch.equal(own.parameter[[0, 2]], other.parameter[[0, 2]])
        assert torch.equal(own.parameter[1], frozen)


def test_padding_of_a_short_rank_stays_zero():
    parameters = bank(2)
    for t in parameters:
        (t.parameter.data[1, -1] if t.kind == "A" else t.parameter.data[1, :, -1]).zero_()
    optimizer = BankAdamW(parameters, [SlotSettings(learning_rate=0.1, weight_decay=0.1)] * 2, scaled=False)
    for step in range(3):
        fill(parameters, step)
        for t in parameters:
            (t.parameter.grad[1, -1] if t.kind == "A" else t.parameter.grad[1, :, -1]).zero_()
        optimizer.step([1.0, 1.0])
    for t in parameters:
        assert not (t.parameter[1, -1] if t.kind == "A" else t.parameter[1, :, -1]).any()


def test_an_overflow_under_a_loss_scale_skips_that_slot_only_and_halves_its_scale():
    parameters = bank(2)
    optimizer = BankAdamW(parameters, [SlotSettings(learning_rate=0.1)] * 2, scaled=True)
    before = parameters[0].parameter.detach().clone()
    parameters[0].parameter.grad[0, 0, 0] = float("inf")
    applied = optimizer.step([1.0, 1.0])
    assert applied.moved == (False, True)
    assert optimizer.scales == [FIRST_SCALE / 2, FIRST_SCALE]
    assert optimizer.alive == [True, True]
    assert optimizer.counts == [0, 1]
    assert torch.equal(parameters[0].parameter[0], before[0])


def test_a_loss_scale_changes_nothing_but_the_range():
    plain, scaled = bank(1), bank(1)
    first = BankAdamW(plain, [SETTINGS[0]], scaled=False)
    second = BankAdamW(scaled, [SETTINGS[0]], scaled=True)
    for step in range(4):
        fill(plain, step)
        fill(scaled, step, scale=second.scales[0])
        assert first.step([1.0]).norms == pytest.approx(second.step([1.0]).norms, rel=1e-14)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one.parameter, other.parameter, rtol=1e-13, atol=0)


def test_a_loss_scale_grows_after_a_calm_stretch_and_a_slot_no_scale_can_help_is_dead():
    parameters = bank(1)
    optimizer = BankAdamW(parameters, [SlotSettings(learning_rate=0.0)], scaled=True)
    for _ in range(GROWTH_INTERVAL):
        optimizer.step([1.0])
    assert optimizer.scales == [FIRST_SCALE * 2]
    for _ in range(40):
        parameters[0].parameter.grad.fill_(float("nan"))
        optimizer.step([1.0])
    assert optimizer.alive == [False]


def test_saved_state_goes_on_to_the_bit():
    straight, stopped, resumed = bank(dtype=torch.float32), bank(dtype=torch.float32), bank(dtype=torch.float32, seed=9)
    first, second = (BankAdamW(p, SETTINGS, scaled=True) for p in (straight, stopped))
    for step in range(3):
        fill(straight, step)
        fill(stopped, step)
        first.step([1.0] * N)
        second.step([1.0] * N)
    third = BankAdamW(resumed, SETTINGS, scaled=True)
    third.load_tensors({name: tensor.clone() for name, tensor in second.tensors().items()})
    third.load_counters(second.counters())
    for step in range(3, 6):
        fill(straight, step)
        fill(resumed, step)
        first.step([1.0] * N)
        third.step([1.0] * N)
    for one, other in zip(straight, resumed, strict=True):
        assert torch.equal(one.parameter, other.parameter)


def test_state_of_another_run_is_refused_by_name():
    optimizer = BankAdamW(bank(), SETTINGS, scaled=False)
    saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    saved["exp_avg.c.lora_A"] = saved.pop("exp_avg.a.lora_A")
    with pytest.raises(RunError, match=r"exp_avg\.a\.lora_A is missing[\s\S]*exp_avg\.c\.lora_A is not of this run"):
        optimizer.load_tensors(saved)


def test_a_parameter_keeps_its_values_and_shape_when_its_storage_moves():
    parameters = bank()
    before = [t.parameter.detach().clone() for t in parameters]
    BankAdamW(parameters, SETTINGS, scaled=False)
    for t, values in zip(parameters, before, strict=True):
        assert torch.equal(t.parameter, values)
        assert t.parameter.grad.shape == values.shape


def test_parameters_trained_in_full_move_as_under_adamw_and_belong_to_one_slot():
    full = Trained(name="score.weight", kind="full", parameter=Parameter(torch.ones(3, 4, dtype=torch.float64)))
    bias = Trained(name="x.bias", kind="undecayed", parameter=Parameter(torch.ones(4, dtype=torch.float64)))
    with pytest.raises(ConfigError, match=r"score\.weight"):
        BankAdamW([*bank(2), full], SETTINGS[:2], scaled=False)
    optimizer = BankAdamW([*bank(1), full, bias], [SlotSettings(learning_rate=0.1, weight_decay=0.5)], scaled=False)
    optimizer.step([1.0])
    torch.testing.assert_close(full.parameter.data, torch.full((3, 4), 0.95, dtype=torch.float64))
    torch.testing.assert_close(bias.parameter.data, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": math.nan}, {"learning_rate": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}, {"clip": -1.0}],
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SlotSettings(**({"learning_rate": 1e-3} | wrong))


def test_an_adapter_loaded_after_the_optimizer_was_built_is_what_goes_on_training():
    adapters = inject(tiny_model("llama"), LoraConfig(r=4, target_modules="qv"))
    optimizer = BankAdamW(trained_parameters(adapters), [SlotSettings(learning_rate=0.1)], scaled=False)
    fresh = adapters.weights("default")
    loaded = replace(fresh, layers={name: (A + 1, B + 1) for name, (A, B) in fresh.layers.items()})
    adapters.load("default", loaded)
    for _, parameter in adapters.trainable():
        parameter.sum().backward()
    assert optimizer.step([1.0]).moved == (True,)
    for name, (A, B) in adapters.weights("default").layers.items():  # Adam's first step is the learning rate
        for now, before in zip((A, B), loaded.layers[name], strict=True):
            torch.testing.assert_close(now, before - 0.1)


def test_a_parameter_that_was_replaced_since_is_refused_not_left_behind():
    adapters = inject(tiny_model("llama"), LoraConfig(r=4, target_modules="qv"))
    optimizer = BankAdamW(trained_parameters(adapters), [SlotSettings(learning_rate=0.1)], scaled=False)
    adapters.add("other", adapters.weights("default"))
    for _, parameter in adapters.trainable():
        parameter.sum().backward()
    with pytest.raises(RunError, match="since the optimizer was built"):
        optimizer.step([1.0])
