"""The arms of ours, in this process: by halving, one whole run, and the whole grid, all by one trainer and schedule."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tune.job import OVER
from lorawise.models.files import resolve_model
from lorawise.runfile import RunFile
from lorawise.training.inputs import dated, read_inputs
from lorawise.training.setup import Prepared, prepare
from lorawise.tuning.engine import Arrived, Leg, travel
from lorawise.tuning.events import Event, RungEnded, StudyResumed, StudyStarted
from lorawise.tuning.members import member_of
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.pack import Pack
from lorawise.tuning.rungs import rung_steps
from lorawise.tuning.space import Axis, grid_of, parse_axes, run_of
from lorawise.tuning.study import tune
from lorawise.tuning.width import slots_of


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Wall and processor seconds, evaluation counted, opening the model and tokenising not."""

    seconds: float
    processor_seconds: float
    evaluation_seconds: float


class Clock:
    """A reader: the time from the study's start to the end of its last rung."""

    def __init__(self) -> None:
        self.rungs: list[RungEnded] = []

    def __call__(self, event: Event | StudyResumed) -> None:
        now = time.perf_counter(), time.process_time()
        if isinstance(event, StudyStarted):
            self._began = now
        elif isinstance(event, RungEnded):
            self.rungs.append(event)
            self._ended = now

    def spent(self) -> Spent:
        wall, processor = (end - start for end, start in zip(self._ended, self._began, strict=True))
        evaluation = sum(rung.evaluation_seconds for rung in self.rungs)
        return Spent(seconds=wall, processor_seconds=processor, evaluation_seconds=evaluation)


def by_halving(run: RunFile, out: Path) -> tuple[Spent, str, float, tuple[int, ...]]:
    """`lorawise tune` as it is typed: what it took, the winner in words, its loss, and the rungs."""
    clock = Clock()
    found = tune(run, out=out, options=StudyOptions(over=OVER), readers=(clock,))
    assert found.best.validation_loss is not None
    return clock.spent(), named(dict(found.best.setting)), found.best.validation_loss, _rungs(run)


def one_run(run: RunFile) -> Spent:
    """The run file's own setting alone: every step, and one evaluation at the end."""
    prepared = _prepared(run)
    member = member_of(prepared.run, trial=0, rungs=_rungs(run))
    return _travelled(prepared, Leg(rung=1, first=0, last=prepared.total, members=(member,), states={}, tokens=0))[0]


def whole_grid(run: RunFile) -> dict[str, float]:
    """Every setting to the end, as many side by side as a study takes: setting → loss."""
    prepared, losses = _prepared(run), {}
    settings = list(grid_of(_axes(run)))
    members = [
        member_of(run_of(prepared.run, setting), trial=i, rungs=_rungs(run)) for i, setting in enumerate(settings)
    ]
    slots = slots_of(prepared, _axes(run))
    for first in range(0, len(members), slots):
        chosen = tuple(members[first : first + slots])
        leg = Leg(rung=1, first=0, last=prepared.total, members=chosen, states={}, tokens=0)
        for measured in _travelled(prepared, leg)[1].measured:
            losses[named(settings[measured.trial])] = measured.loss
    return losses


def named(setting: dict[str, object]) -> str:
    return f"scaling {setting['lora.scaling']:g}, lr {setting['train.learning_rate']:g}"


def _axes(run: RunFile) -> Sequence[Axis]:
    return parse_axes(OVER, run)


def _rungs(run: RunFile) -> tuple[int, ...]:
    assert run.train.steps is not None
    return rung_steps(run.train.steps, len(list(grid_of(_axes(run)))), eliminate="halving")


def _prepared(run: RunFile) -> Prepared:
    run = dated(run)
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


def _travelled(prepared: Prepared, leg: Leg) -> tuple[Spent, Arrived]:
    pack = Pack(prepared)
    wall, processor = time.perf_counter(), time.process_time()
    *_, arrived = travel(pack, leg)
    assert isinstance(arrived, Arrived)
    spent = Spent(
        seconds=time.perf_counter() - wall,
        processor_seconds=time.process_time() - processor,
        evaluation_seconds=arrived.seconds,
    )
    return spent, arrived
