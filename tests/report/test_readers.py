"""The readers of a run's stream: metrics, facts, console, trackers."""

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from tests.report.pretend_run import EVIL, evaluated, loss_at, preflight, step_done, whole_run

from lorawise.base.errors import ConfigError, StorageError
from lorawise.base.findings import Finding
from lorawise.report import words
from lorawise.report.console import ConsoleReader
from lorawise.report.events import Noted, PreflightDone, RunStarted
from lorawise.report.facts import FactsFile, read_facts
from lorawise.report.metrics import MetricsFile, plain, read_metrics
from lorawise.report.trackers import open_trackers


def test_metrics_are_on_disk_as_soon_as_they_happen(tmp_path: Path) -> None:
    reader = MetricsFile(tmp_path / "metrics.jsonl")
    reader(step_done(1, 2.0))
    reader(evaluated(1, 1.5))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"], line["loss"]) for line in lines] == [("step", 1, 2.0), ("evaluation", 1, 1.5)]
    assert lines[1]["samples"][0]["match"] is True
    reader.close()


def test_a_loss_that_diverged_is_null_in_metrics(tmp_path: Path) -> None:
    reader = MetricsFile(tmp_path / "metrics.jsonl")
    reader(dataclasses.replace(step_done(1, math.nan), gradient_norm=math.inf))
    reader.close()
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    line = json.loads(text, parse_constant=pytest.fail)
    assert line["loss"] is None
    assert line["gradient_norm"] is None


def test_a_resumed_metrics_file_reads_as_if_the_run_never_stopped(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    events = list(whole_run(tmp_path, steps=60))
    for path in (straight, resumed):
        reader = MetricsFile(path)
        for event in events:
            reader(event)
        reader.close()
    with resumed.open("a", encoding="utf-8") as out:
        out.write('{"kind": "step", "step": 61, "lo')
    reader = MetricsFile(resumed, resume_at=50)
    for step in range(51, 61):
        reader(step_done(step, loss_at(step)))
    reader.close()
    assert resumed.read_text(encoding="utf-8") == straight.read_text(encoding="utf-8")


def test_a_full_disk_is_told_as_a_storage_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    reader = MetricsFile(tmp_path / "metrics.jsonl")
    reader.close()
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        reader._out = full
        with pytest.raises(StorageError, match="no space left"):
            reader(step_done(1, 1.0))
        full.buffer.raw.close()


def test_facts_keep_what_happened_once(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    reader = FactsFile(path)
    for event in whole_run(tmp_path, steps=3):
        reader(event)
    facts = read_facts(path)
    assert facts["started"]["setting"]["scaling"] == 2.0
    assert facts["preflight"]["cut_tokens"] == 117
    assert facts["ended"]["reason"] == "finished"
    assert [finding["code"] for finding in facts["findings"]] == ["cut"]


def test_facts_of_a_resumed_run_keep_earlier_findings_and_drop_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    reader = FactsFile(path)
    for step in (0, 10, 20):
        reader(Noted(finding=Finding(code=f"at-{step}", level="note", message=""), step=step))
    again = FactsFile(path, resume_at=10)
    again(Noted(finding=Finding(code="at-0", level="note", message=""), step=0))
    again(PreflightDone(report=preflight()))
    assert [finding["code"] for finding in read_facts(path)["findings"]] == ["at-0", "at-10"]


def test_half_a_character_and_odd_values_still_become_json() -> None:
    assert (
        json.dumps(plain({"a": "\ud800", Path("b"): (1, math.inf, None, True)}))
        == '{"a": "?", "b": [1, null, null, true]}'
    )


def shown(folder: Path, *, terminal: bool, width: int = 100) -> str:
    out = io.StringIO()
    reader = ConsoleReader(Console(file=out, force_terminal=terminal, width=width, color_system=None))
    for event in whole_run(folder):
        reader(event)
    reader.close()
    return out.getvalue()


def test_elsewhere_than_a_terminal_the_console_writes_plain_lines(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=False)
    assert "r=16  alpha=32  scaling=2  learning_rate=2e-4" in text
    assert "trainable params: 4,884,480 || all: 139,399,488 || trainable%: 3.5039" in text
    assert "step 150/150  loss" in text
    assert "step 50: validation loss 0.3858  perplexity 1.471  exact match 95.0 %  best so far" in text
    assert "warning: 2 rows were cut at 512 tokens (raise max_length)" in text
    assert "\x1b" not in text
    assert 10 < sum(line.startswith("step ") for line in text.splitlines()) < 60


def test_text_from_data_is_neither_markup_nor_obeyed_by_the_terminal(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=False)
    assert "[bold]not" in text
    assert "\\x1b[31mred" in text


def test_on_a_terminal_one_line_is_redrawn(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    assert "\x1b[" in text
    assert "finished after step 150" in text


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (words.size(1536), "1.5 KiB"),
        (words.duration(3727), "1:02:07"),
        (words.duration(4.2), "4.2 s"),
        (words.rate(2e-4), "2e-4"),
        (words.rate(0.0), "0e0"),
        (words.loss(math.nan), "diverged"),
        (words.visible("a\x1b\u202eb\n"), "a\\x1b\\u202eb\n"),
    ],
)
def test_numbers_are_told_as_people_read_them(told: str, expected: str) -> None:
    assert told == expected


def test_tensorboard_holds_what_the_run_said_and_a_resume_hides_what_came_after(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first, second = tuple(whole_run(tmp_path, steps=20)), whole_run(tmp_path, steps=20)
    (reader,) = open_trackers(["tensorboard"], tmp_path)
    for event in first:
        reader(event)
    reader.close()
    (reader,) = open_trackers(["tensorboard"], tmp_path)
    started = next(event for event in second if isinstance(event, RunStarted))
    reader(dataclasses.replace(started, first_step=11))
    reader(step_done(11, 7.0))
    reader.close()
    held = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    held.Reload()
    losses = [(event.step, event.value) for event in held.Scalars("train/loss")]
    assert [step for step, _ in losses] == list(range(1, 12))
    assert losses[-1] == (11, 7.0)
    assert held.Scalars("base/loss")[0].value == pytest.approx(2.31)


class Recorder:
    """Stands for wandb, mlflow and trackio alike: remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def module(self, name: str, *functions: str) -> ModuleType:
        module = ModuleType(name)
        for function in functions:
            setattr(module, function, self.recording(function))
        return module

    def recording(self, function: str) -> object:
        def call(*positional: object, **named: object) -> object:
            self.calls.append((function, positional[0] if positional else named))
            info = SimpleNamespace(run_id="given by the service")
            return SimpleNamespace(log=self.recording("log"), finish=self.recording("finish"), info=info)

        return call


@pytest.mark.parametrize(
    ("name", "functions", "log", "last"),
    [
        ("wandb", ("init",), "log", "finish"),
        ("mlflow", ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"), "log_metrics", "end_run"),
        ("trackio", ("init", "log", "finish"), "log", "finish"),
    ],
)
def test_a_tracker_is_started_fed_and_closed(
    name: str, functions: tuple[str, ...], log: str, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder.module(name, *functions))
    (reader,) = open_trackers([name], tmp_path / "first")
    for event in whole_run(tmp_path, steps=2):
        reader(event)
    reader(step_done(3, math.nan))
    reader.close()
    logged = [value for function, value in recorder.calls if function == log]
    assert "first" in str(recorder.calls[:2])
    assert logged[0]["base/loss"] == 2.31
    assert logged[1]["train/loss"] == pytest.approx(loss_at(1))
    assert "train/loss" not in logged[-1]
    assert recorder.calls[-1][0] == last


@pytest.mark.parametrize(
    ("name", "functions", "start", "key"),
    [
        ("wandb", ("init",), "init", "id"),
        ("mlflow", ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"), "start_run", "run_id"),
        ("trackio", ("init", "log", "finish"), "init", "name"),
    ],
)
def test_a_resumed_run_goes_on_in_the_place_it_had(
    name: str, functions: tuple[str, ...], start: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder.module(name, *functions))
    started = next(event for event in whole_run(tmp_path) if isinstance(event, RunStarted))
    for folder in (tmp_path / "first", tmp_path / "first", tmp_path / "another" / "first"):
        (reader,) = open_trackers([name], folder)
        reader(started)
        reader.close()
    calls = [named for function, named in recorder.calls if function == start]
    first, again, other = (dict(named) for named in calls)
    known = "given by the service" if name == "mlflow" else first[key]
    assert again[key] == known
    assert again.get("resume", "allow") == "allow"
    assert other[key] != known
    assert [function for function, _ in recorder.calls].count("log_params") == 2 * (name == "mlflow")


def test_a_tracker_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError) as caught:
        open_trackers(["trackio"], tmp_path)
    assert "pip install 'lorawise[trackers]'" in caught.value.cure


def test_an_unknown_tracker_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_trackers(["tensorbord"], tmp_path)
    assert "tensorboard" in caught.value.cure


def test_the_evil_text_of_these_tests_is_in_the_pretended_run() -> None:
    assert any(EVIL in piece.text for piece in preflight().row)


def test_a_reader_that_left_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    told = 0
    with open(os.devnull, "w") as stdout, contextlib.suppress(BrokenPipeError), open(writing, "w") as stderr:
        monkeypatch.setattr("sys.stdout", stdout)  # one with a descriptor, as outside tests
        monkeypatch.setattr("sys.stderr", stderr)
        reader = ConsoleReader()
        for event in whole_run(tmp_path, steps=20):
            reader(event)
            told += 1
        reader.close()
    assert told > 20  # closing the pipe fails too, and would hide what was raised above
    assert reader.console.quiet


class Unreachable(Recorder):
    """A service that fails from its `good`-th call on."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def recording(self, function: str) -> object:
        record = super().recording(function)

        def call(*positional: object, **named: object) -> object:
            if len(self.calls) >= self.good:
                raise ConnectionError("no route to host")
            return record(*positional, **named)

        return call


def test_a_service_that_fails_on_the_way_is_left_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Unreachable(good=3)
    monkeypatch.setitem(sys.modules, "trackio", service.module("trackio", "init", "log", "finish"))
    (reader,) = open_trackers(["trackio"], tmp_path / "first")
    for event in whole_run(tmp_path, steps=5):
        reader(event)
    reader.close()
    assert len(service.calls) == 3
    assert capsys.readouterr().err.count("'trackio' takes no more numbers (no route to host)") == 1


def test_a_service_that_will_not_start_stops_the_run_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Unreachable(good=0).module("wandb", "init"))
    (reader,) = open_trackers(["wandb"], tmp_path / "first")
    started = next(event for event in whole_run(tmp_path) if isinstance(event, RunStarted))
    with pytest.raises(ConfigError, match="did not start: no route to host") as caught:
        reader(started)
    assert "train.trackers" in caught.value.cure


@pytest.mark.parametrize("width", [40, 64, 80, 120])
def test_at_any_width_the_checks_and_the_step_can_be_read(width: int, tmp_path: Path) -> None:
    lines = [line.strip() for line in shown(tmp_path, terminal=False, width=width).splitlines()]
    for check in preflight().checks:
        [line] = [line for line in lines if check.name in line]
        assert check.detail in line or check.detail in lines
    live = shown(tmp_path, terminal=True, width=width)
    assert "step 150/150" in live
    assert "loss " in live.rpartition("step 150/150")[2].partition("\r")[0]
    assert ("━" in live) == (width >= 104)
