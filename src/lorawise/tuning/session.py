"""One study in progress: rungs of packs, from the settings asked to the adapters kept.

rung 1: for each pack { ask, advance, tell }    rung k: survivors in packs { advance }    after each: eliminate, save
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorawise.base.errors import Interrupted, LorawiseError, RunError
from lorawise.base.files import write_text
from lorawise.training.setup import Prepared
from lorawise.training.signals import StopRequest, stop_on_signal
from lorawise.tuning.asking import Proposals
from lorawise.tuning.closer_look import look_closer
from lorawise.tuning.engine import Arrived, Engine, Leg, engines
from lorawise.tuning.events import (
    Event,
    PackStepped,
    Reader,
    RungEnded,
    StudyEnded,
    StudyResumed,
    StudyStarted,
    TrialAsked,
    asked_trials,
    measured_in,
)
from lorawise.tuning.folder import EventsFile, StudyFolder, up_to_rung
from lorawise.tuning.keeping import finalists_of, keep_finalists
from lorawise.tuning.members import member_of
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.pack import Member, Pack, SlotState
from lorawise.tuning.report.page import write_report
from lorawise.tuning.result import StudyResult, results_csv, sentence, table
from lorawise.tuning.rungs import eliminations, ranking
from lorawise.tuning.shared import Plans, Shared, rungs_within, shared_of
from lorawise.tuning.space import Axis, run_of
from lorawise.tuning.trackers import StudyTrackers

GO_ON = "the same command with --resume goes on"


@dataclass(kw_only=True)
class Study:
    """`told` holds every event so far, `states` what the next rung starts from."""

    prepared: Prepared
    folder: StudyFolder
    options: StudyOptions
    axes: tuple[Axis, ...]
    count: int
    rungs: tuple[int, ...]
    slots: int
    told: list[Event] = field(default_factory=list)
    states: dict[int, SlotState] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    stop: StopRequest = field(default_factory=StopRequest)
    engine: Engine = field(init=False)
    plans: Plans = field(init=False)
    evaluating: float = 0.0  # seconds of this rung's measurements

    def run(self, asked: Mapping[str, Any], readers: Sequence[Reader], stack: contextlib.ExitStack) -> StudyResult:
        """To the end, or to a signal; a study that has ended is only read."""
        done, self.states = self.folder.restored()
        past = up_to_rung(self.folder.events(), done)
        if not any(isinstance(event, StudyEnded) for event in past):
            pack = Pack(self.prepared)
            self.plans = pack.plans
            self.engine = engines[self.options.engine](pack, self.options.workers)
            stack.callback(self.engine.close)
            if done == 0:
                self._start_anew(asked)
            log = EventsFile(self.folder.log, past)
            stack.callback(log.close)
            self.stop = stack.enter_context(stop_on_signal())
            self.told = list(past)
            readers = (*readers, StudyTrackers(self.prepared.run.train.trackers, self.folder.path))
            if past:
                seen = tuple(event for event in past if not isinstance(event, PackStepped))
                for reader in readers:
                    reader(StudyResumed(told=seen))
            try:
                for event in self._events(pack, done):
                    self.told.append(event)
                    for reader in (log, *readers):
                        reader(event)
            except BaseException:
                with contextlib.suppress(LorawiseError):
                    write_report(self.folder.path)
                raise
        else:
            self.told = past
        write_report(self.folder.path)
        return self._result()

    def _result(self) -> StudyResult:
        ended = next(event for event in self.told if isinstance(event, StudyEnded))
        rows = table(self.told, ended=True)
        return StudyResult(
            study=self.folder.path,
            best=next(row for row in rows if row.trial == ended.best),
            rows=rows,
            seconds=ended.seconds,
            full_run_equivalents=ended.full_run_equivalents,
            sentence=ended.sentence,
        )

    def _start_anew(self, asked: Mapping[str, Any]) -> None:
        (self.folder.path / "optuna.log").unlink(missing_ok=True)
        write_text(self.folder.path / "run.yaml", self.prepared.run.to_yaml())
        write_text(self.folder.asked, json.dumps(dict(asked), indent=1))

    def _events(self, pack: Pack, done: int) -> Iterator[Event]:
        if done == 0:
            yield self._started()
        for trial in asked_trials(self.told):
            self._enlist(trial)
        survivors = self._survivors()
        for rung in range(done + 1, len(self.rungs) + 1):
            began, self.evaluating = time.perf_counter(), 0.0
            if rung == 1:
                yield from self._first_rung()
            else:
                yield from self._advance(rung, survivors)
            ended = self._eliminate(rung, time.perf_counter() - began)
            survivors = ended.kept
            finalists = finalists_of(table([*self.told, ended], ended=True), self.states)
            if rung == len(self.rungs):
                keep_finalists(pack, self.folder, finalists, self.members, self.states)
            held = {*survivors, *(row.trial for row in finalists)}
            self.states = {trial: state for trial, state in self.states.items() if trial in held}
            yield ended
            self.folder.save(rung, self.states)  # last: a rung without its state is done again
        best = finalists_of(table(self.told, ended=True), self.states)
        members = [self.members[row.trial] for row in best]
        for event in look_closer(pack, members, self.states, slots=self.slots):
            yield event
            if self.stop:
                raise Interrupted(
                    f"{self.stop.name} after the last rung: every setting is measured, the best adapters are saved",
                    cure=GO_ON,
                )
        yield self._finish()

    def _started(self) -> StudyStarted:
        inputs, evaluator = self.prepared.inputs, self.prepared.evaluator
        assert inputs.validation is not None
        assert evaluator is not None
        return StudyStarted(
            axes=tuple(axis.key for axis in self.axes),
            rungs=self.rungs,
            trials=self.count,
            slots=self.slots,
            sampler=self.options.sampler,
            eliminate=self.options.eliminate,
            first_rung=1,
            rows=len(inputs.train),
            validation_rows=len(inputs.validation),
            base_loss=evaluator(0, "base").loss,
        )

    def _first_rung(self) -> Iterator[Event]:
        """Ask as many settings as train at once, train them, tell what they came to; until all are asked."""
        run, journal = self.prepared.run, self.folder.path / "optuna.log"
        proposals = Proposals(self.axes, run, self.options, journal=journal)
        at_once = self.slots * self.engine.width
        for first in range(0, self.count, at_once):
            numbers = range(first, min(first + at_once, self.count))
            for number in numbers:
                trial = proposals.ask(number)
                yield trial
                self._enlist(trial)
            yield from self._advance(1, [number for number in numbers if number in self.members])
            proposals.tell(numbers, {event.trial: event.loss for event in measured_in(self.told, 1)})

    def _enlist(self, trial: TrialAsked) -> None:
        """Make the setting a member of packs, unless it is the same run as an earlier one."""
        if trial.equal_to is None:
            run, shared = run_of(self.prepared.run, trial.setting), shared_of(trial.setting)
            rungs = rungs_within(self.rungs, self.plans.total(shared))
            self.members[trial.trial] = member_of(run, trial=trial.trial, rungs=rungs, shared=shared)

    def _survivors(self) -> tuple[int, ...]:
        ended = [event for event in self.told if isinstance(event, RungEnded)]
        return ended[-1].kept if ended else ()

    def _advance(self, rung: int, trials: Sequence[int]) -> Iterator[Event]:
        """`trials`, in packs of those that share their rows, from the last rung's step to this one's."""
        size = max(1, min(self.slots, -(-len(trials) // self.engine.width)))
        alike: dict[Shared, list[int]] = {}
        for trial in trials:
            alike.setdefault(self.members[trial].shared, []).append(trial)
        legs = [self._leg(rung, chosen) for group in alike.values() for chosen in _parted(group, size)]
        for told in self.engine.train(legs):
            if isinstance(told, Arrived):
                self.states |= told.states
                self.evaluating += told.seconds
                yield from told.measured
                continue
            yield told
            if self.stop and isinstance(told, PackStepped):
                raise Interrupted(
                    f"{self.stop.name} at step {told.step} of rung {rung}; {_saved(rung - 1)}",
                    cure=GO_ON,
                )

    def _leg(self, rung: int, trials: Sequence[int]) -> Leg:
        steps = self.members[trials[0]].rungs
        return Leg(
            rung=rung,
            first=steps[rung - 2] if rung > 1 else 0,
            last=steps[rung - 1],
            members=tuple(self.members[trial] for trial in trials),
            states={trial: self.states[trial] for trial in trials if trial in self.states},
            tokens=max((e.tokens for e in measured_in(self.told, rung - 1) if e.trial in trials), default=0),
        )

    def _eliminate(self, rung: int, seconds: float) -> RungEnded:
        measured = sorted(measured_in(self.told, rung), key=lambda event: event.trial)
        losses = [event.loss for event in measured]
        last = rung == len(self.rungs)
        order = ranking(losses)
        if not order:
            raise RunError(
                f"every setting diverged in rung {rung}",
                expected="a finite loss from at least one",
                cure="lower the learning rates or scalings of --over",
            )
        rows = np.array([event.row_losses for event in measured])
        chosen = order if last else eliminations[self.options.eliminate](losses, rows)
        kept = tuple(measured[i].trial for i in chosen)
        ranked = tuple(measured[i].trial for i in order)
        return RungEnded(
            rung=rung,
            step=self.rungs[rung - 1],
            ranking=ranked,
            kept=kept,
            eliminated=tuple(event.trial for event in measured if event.trial not in kept),
            seconds=seconds,
            evaluation_seconds=self.evaluating,
        )

    def _finish(self) -> StudyEnded:
        rows = table(self.told, ended=True)
        write_text(self.folder.path / "results.csv", results_csv(rows, [axis.key for axis in self.axes]))
        best = rows[0]
        own = next((e.trial for e in asked_trials(self.told) if e.origin == "the run file"), None)
        stepped = [trial for e in self.told if isinstance(e, PackStepped) for trial in e.trials]
        assert best.validation_loss is not None, "a rung in which all diverged was refused"
        return StudyEnded(
            best=best.trial,
            loss=best.validation_loss,
            seconds=sum(e.seconds for e in self.told if isinstance(e, RungEnded)),
            full_run_equivalents=math.fsum(1 / self.members[trial].rungs[-1] for trial in stepped),
            sentence=sentence(self.told, best.trial, own),
        )


def _saved(rungs: int) -> str:
    if rungs == 0:
        return "no rung is whole yet"
    return "the rung before it is saved" if rungs == 1 else f"the {rungs} rungs before it are saved"


def _parted(trials: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(trials), size):
        yield trials[first : first + size]
