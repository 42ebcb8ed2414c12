"""Law 5, at the trainer: a LoRA+ ratio of k is a scaling of k, to the bit for powers of two, unless clipped.

scaling k·s: B's gradient is k times as large, and so its eps must be      ratio k: B's rate is k times, eps one k-th
"""

from pathlib import Path
from typing import Any

import pytest
from tests.workbench import tiny_run

from lorawise.models.files import resolve_model
from lorawise.training.inputs import dated, read_inputs
from lorawise.training.setup import prepare
from lorawise.tuning.space import identity, run_of

STEPS = 24
PLAIN = {"train.clip": None, "train.weight_decay": 0.0, "train.eps": 1e-6}


def losses(folder: Path, values: dict[str, Any]) -> list[float]:
    run = dated(run_of(tiny_run(folder, train__steps=STEPS), values))
    files = resolve_model(run.model)
    trainer = prepare(run, files, read_inputs(run, files)).trainer
    return [trainer.step(k).losses[0] for k in range(STEPS)]


def both(k: float, **held: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    values = PLAIN | {name.replace("__", "."): value for name, value in held.items()}
    return values | {"lora.scaling": k * 1.5}, values | {"lora.scaling": 1.5, "train.lora_plus_ratio": k}


@pytest.mark.parametrize("k", [0.25, 2.0, 8.0])
def test_a_ratio_of_a_power_of_two_is_that_scaling_to_the_bit(tmp_path, k):
    by_scaling, by_ratio = both(k)
    assert losses(tmp_path, by_scaling) == losses(tmp_path, by_ratio)
    assert losses(tmp_path, by_scaling) != losses(tmp_path, both(1.0)[0])


def test_a_ratio_of_three_is_that_scaling_to_rounding(tmp_path):
    by_scaling, by_ratio = both(3.0)
    assert losses(tmp_path, by_scaling) == pytest.approx(losses(tmp_path, by_ratio), abs=2e-4)


@pytest.mark.parametrize("held", [{"train__clip": 0.1}, {"train__weight_decay": 0.1}, {"lora__dropout": 0.2}], ids=str)
def test_clipping_decay_or_dropout_make_them_two_runs(tmp_path, held):
    by_scaling, by_ratio = both(4.0, **held)
    one, other = losses(tmp_path, by_scaling), losses(tmp_path, by_ratio)
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-4
    run = tiny_run(tmp_path)
    assert identity(run_of(run, by_scaling)) != identity(run_of(run, by_ratio))


@pytest.mark.parametrize("k", [0.25, 2.0, 3.0, 8.0])
def test_a_study_knows_that_they_are_one_run(tmp_path, k):
    run = tiny_run(tmp_path)
    by_scaling, by_ratio = both(k)
    assert identity(run_of(run, by_scaling)) == identity(run_of(run, by_ratio))
    assert identity(run_of(run, by_scaling)) != identity(run_of(run, by_ratio | {"train.eps": 2e-6}))
