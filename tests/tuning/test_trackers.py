"""One run a setting in every tracker, handed on rung by rung; a study that is killed tells nothing twice."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tests.tuning.small_study import OVER
from tests.workbench import rows_of, tiny_run

from lorawise.base.errors import ConfigError
from lorawise.tuning.events import PackStepped, RungEnded, StudyStarted, TrialMeasured
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.study import tune


def study(tmp_path, *trackers, out="first", resume=False, readers=()):
    run = tiny_run(tmp_path, rows=rows_of(60), train__steps=64, train__trackers=list(trackers))
    return tune(run, out=tmp_path / out, options=StudyOptions(over=OVER), resume=resume, readers=readers)


def scalars(tmp_path, out="first"):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for folder in sorted((tmp_path / out / "trackers").iterdir()):
        held = loader.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        held.Reload()
        # Files of one second are read in the order of their names, whose last part is a count without leading zeros.
        found[folder.name] = {
            tag: sorted((e.step, e.value) for e in held.Scalars(tag)) for tag in held.Tags()["scalars"]
        }
    return found


def test_tensorboard_holds_one_run_a_setting_with_what_the_events_say(tmp_path):
    found = study(tmp_path, "tensorboard")
    events = StudyFolder(path=found.study).events()
    started = next(e for e in events if isinstance(e, StudyStarted))
    runs = scalars(tmp_path)
    assert len(runs) == 9
    assert "first-05_scaling_2_lr_1e-2" in runs
    for name, held in runs.items():
        trial = int(name.removeprefix("first-")[:2])
        steps = [
            (e.step, e.losses[e.trials.index(trial)])
            for e in events
            if isinstance(e, PackStepped) and trial in e.trials
        ]
        assert held["train/loss"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in steps]
        measured = [(e.step, e.loss) for e in events if isinstance(e, TrialMeasured) and e.trial == trial]
        assert held["validation/loss"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in measured]
        assert held["base/loss"] == [(0, pytest.approx(started.base_loss, rel=1e-6))]
    assert sorted(len(held["train/loss"]) for held in runs.values()) == [16] * 6 + [64] * 3


def test_a_study_killed_in_its_second_rung_tells_each_step_once(tmp_path):
    class Killed(BaseException):
        pass

    def kill(event):
        if isinstance(event, PackStepped) and event.rung == 2 and event.step == 30:
            raise Killed

    study(tmp_path, "tensorboard", out="whole")
    with pytest.raises(Killed):
        study(tmp_path, "tensorboard", readers=(kill,))
    study(tmp_path, "tensorboard", resume=True)
    whole = {name.removeprefix("whole-"): held["train/loss"] for name, held in scalars(tmp_path, "whole").items()}
    assert {name.removeprefix("first-"): held["train/loss"] for name, held in scalars(tmp_path).items()} == whole


class Service(ModuleType):
    """Stands for wandb: one current run, remembered by its id."""

    def __init__(self, *, good: float = math.inf) -> None:
        super().__init__("wandb")
        self.good = good
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.named: dict[str, str] = {}
        self.current: str | None = None

    def init(self, **asked):
        assert self.current is None, "the run before was finished"
        self.current = asked["id"]
        self.named[asked["id"]] = asked["name"]
        self.runs.setdefault(asked["id"], [])
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, numbers, step):
        if sum(map(len, self.runs.values())) >= self.good:
            raise ConnectionError("no route to host")
        self.runs[self.current].append((step, numbers))

    def finish(self):
        self.current = None


def test_a_service_with_one_current_run_gets_every_setting_as_its_own(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    study(tmp_path, "wandb")
    assert len(service.runs) == 9
    assert len(set(service.named.values())) == 9
    for told in service.runs.values():
        steps = [step for step, _ in told]
        assert steps == sorted(steps)
        assert steps[-1] in (16, 64)


def test_a_service_that_fails_is_told_once_and_the_study_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Service(good=20))
    rungs = []
    study(tmp_path, "wandb", readers=(lambda event: rungs.append(event) if isinstance(event, RungEnded) else None,))
    assert len(rungs) == 2
    assert capsys.readouterr().err.count("'wandb' takes no more numbers (no route to host)") == 1


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"lorawise\[trackers\]"):
        study(tmp_path, "trackio")
    assert not (tmp_path / "first").exists()
