"""Law 7: a run stopped at any step and resumed equals the run never stopped, to the bit, on CPU."""

import json
import os
import signal
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.workbench import TEMPLATE, labelled_rows, rows_of, tiny_folder, tiny_run

from lorawise.base.errors import Interrupted
from lorawise.report.events import StepDone
from lorawise.training import inputs, optimizer
from lorawise.training.run import train

CASES = {
    "packed": {},
    "dropout": {"lora__dropout": 0.2},
    "accumulated": {"train__micro_batch_tokens": 64, "train__max_length": 60, "lora__dropout": 0.1},
    "padded": {"train__packing": False, "train__batch_size": 5, "train__micro_batch_size": 2},
    "by_epoch": {"train__eval_every": "epoch", "train__save_every": "epoch", "train__schedule": "wsd"},
    "recomputed": {"train__memory": "frugal", "lora__dropout": 0.1},
    "half": {"base__dtype": "float16"},
    "nf4": {"base__dtype": "nf4", "lora__dropout": 0.1},
    "int8": {"base__dtype": "int8"},
    "rates": {"train__lora_plus_ratio": 4.0, "train__weight_decay": 0.1, "train__clip": 0.3},
}


class SignalAt:
    """A reader that presses ctrl-C when a step is done."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def __call__(self, event: object) -> None:
        if isinstance(event, StepDone) and event.step == self.step:
            os.kill(os.getpid(), self.number)

    def close(self) -> None: ...


def numbers(run: Path) -> list[dict[str, object]]:
    """What metrics.jsonl says, without what a clock or the memory says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changing = {"seconds", "tokens_per_second", "memory"}
    return [{key: value for key, value in line.items() if key not in changing} for line in lines]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / "adapter" / name).read_bytes() == (other / "adapter" / name).read_bytes()
    last = sorted((one / "checkpoints").iterdir())[-1].name
    counters = [(run / "checkpoints" / last / "optimizer.json").read_text() for run in (one, other)]
    assert counters[0] == counters[1]
    for word in ("parameter", "exp_avg", "exp_avg_sq"):
        mine, theirs = (load_file(run / "checkpoints" / last / f"{word}.safetensors") for run in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(mine[name].equal(theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize("case", CASES)
def test_stopped_by_a_signal_and_resumed_equals_never_stopped(case, tmp_path, base):
    run = tiny_run(tmp_path, model=base, **CASES[case])
    train(run, out=tmp_path / "straight")
    for step in (3, 5):  # stopped twice: inside an epoch, and just behind an evaluation
        with pytest.raises(Interrupted, match=f"after step {step} of 8") as stopped:
            train(run, out=tmp_path / "stopped", resume=step > 3, readers=[SignalAt(step)])
        assert "--resume" in stopped.value.cure
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("step", [1, 2, 4, 6, 7])
def test_any_step_will_do_to_stop_at(step, tmp_path, base):
    run = tiny_run(tmp_path, model=base, lora__dropout=0.1)
    train(run, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(step, signal.SIGTERM)])
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


def test_a_run_that_dies_between_saves_repeats_the_steps_since_and_ends_the_same(tmp_path, base):
    class Dies(SignalAt):
        def __call__(self, event: object) -> None:
            if isinstance(event, StepDone) and event.step == self.step:
                raise RuntimeError("power cut")

    run = tiny_run(tmp_path, model=base, train__save_every=3)
    train(run, out=tmp_path / "straight")
    with pytest.raises(RuntimeError, match="power cut"):
        train(run, out=tmp_path / "stopped", readers=[Dies(5)])
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


def test_a_classification_head_goes_on_to_the_bit_too(tmp_path, base):
    run = tiny_run(tmp_path, model=base, rows=labelled_rows(24), task="classification")
    train(run, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(5)])
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


def test_a_template_that_prints_the_date_prints_the_day_the_run_started(tmp_path, monkeypatch):
    """A run that goes on next week sees the text it began with."""
    base = tiny_folder(tmp_path / "base", template="<s>{{ strftime_now('%d %B %Y') }}\n" + TEMPLATE)
    run = tiny_run(tmp_path, model=base)
    monkeypatch.setattr(inputs, "_today", lambda: date(2026, 11, 24))
    train(run, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(5)])
    monkeypatch.setattr(inputs, "_today", lambda: date(2026, 12, 1))
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")
    assert "date: '2026-11-24'" in (tmp_path / "stopped" / "run.yaml").read_text()


@pytest.mark.parametrize("before_the_end", [1, 2])
def test_patience_counts_on_over_a_stop(before_the_end, tmp_path, base):
    values = {"train__learning_rate": 0.3, "train__schedule": "constant", "train__clip": None, "train__eval_every": 1}
    run = tiny_run(tmp_path, model=base, train__steps=40, train__early_stopping=3, **values)
    straight = train(run, out=tmp_path / "straight")
    assert straight.reason == "stopped early"
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(straight.steps - before_the_end)])
    assert train(run, out=tmp_path / "stopped", resume=True).steps == straight.steps
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


def test_the_loss_scale_of_half_precision_goes_on_where_it_was(tmp_path, base, monkeypatch):
    monkeypatch.setattr(optimizer, "GROWTH_INTERVAL", 2)
    run = tiny_run(tmp_path, model=base, base__dtype="float16")
    train(run, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(3)])
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["recomputed", "padded"])
def test_two_threads_are_as_exact_as_one(case, tmp_path):
    """On a base wide enough for torch to share each product between them."""
    base = tiny_folder(tmp_path / "base", hidden_size=256, intermediate_size=512)
    run = tiny_run(tmp_path, model=base, rows=rows_of(80), **{"train__batch_tokens": 2048, **CASES[case]})
    train(run, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(5)])
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")
