"""A study read back from its folder: what its report tells, gathered from files alone; no torch.

    run.yaml  study.json  events.jsonl  ─▶ StudyStory

A study that is under way, or was stopped, has a story too: it ends earlier.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorawise.runfile import RunFile, load_run_file
from lorawise.tuning.events import (
    Answered,
    Event,
    PackStepped,
    RungEnded,
    ScalingTurned,
    StudyEnded,
    StudyStarted,
    TrialAsked,
    TrialFailed,
    TrialMeasured,
    from_line,
)
from lorawise.tuning.result import SHORT, Row, in_words, table
from lorawise.tuning.rungs import Interval, paired_interval

RATE, SCALING, RANK = "train.learning_rate", "lora.scaling", "lora.r"
FULL = {RATE: "learning_rate", SCALING: "scaling", RANK: "r"}  # what every trial shows, whatever varies


@dataclass(frozen=True, kw_only=True)
class StudyStory:
    folder: Path
    run: RunFile
    run_text: str
    asked: Mapping[str, Any]
    events: tuple[Event, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def started(self) -> StudyStarted | None:
        return next((e for e in self.events if isinstance(e, StudyStarted)), None)

    @cached_property
    def ended(self) -> StudyEnded | None:
        return next((e for e in self.events if isinstance(e, StudyEnded)), None)

    @cached_property
    def rungs(self) -> tuple[RungEnded, ...]:
        return tuple(e for e in self.events if isinstance(e, RungEnded))

    @cached_property
    def steps(self) -> tuple[PackStepped, ...]:
        return tuple(e for e in self.events if isinstance(e, PackStepped))

    @cached_property
    def trials(self) -> dict[int, TrialAsked]:
        """Those that were run: one that equals an earlier one is left out."""
        return {e.trial: e for e in self.events if isinstance(e, TrialAsked) and e.equal_to is None}

    @cached_property
    def measured(self) -> dict[int, dict[int, TrialMeasured]]:
        """rung → trial → its measurement, finite ones."""
        found: dict[int, dict[int, TrialMeasured]] = {}
        for event in self.events:
            if isinstance(event, TrialMeasured) and math.isfinite(event.loss):
                found.setdefault(event.rung, {})[event.trial] = event
        return found

    @cached_property
    def failed(self) -> dict[int, TrialFailed]:
        return {e.trial: e for e in self.events if isinstance(e, TrialFailed)}

    @cached_property
    def turned(self) -> tuple[ScalingTurned, ...]:
        found = (e for e in self.events if isinstance(e, ScalingTurned))
        return tuple(sorted(found, key=lambda e: e.factor))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return table(self.events, ended=self.ended is not None)

    @cached_property
    def first(self) -> dict[int, TrialMeasured]:
        """The first comparison, the only one in which every setting took part."""
        return self.measured.get(1, {})

    @cached_property
    def leader(self) -> int | None:
        """The winner, or who led the last comparison."""
        if self.ended is not None:
            return self.ended.best
        return self.rungs[-1].ranking[0] if self.rungs else None

    @property
    def base_loss(self) -> float | None:
        return None if self.started is None or not math.isfinite(self.started.base_loss) else self.started.base_loss

    @property
    def axes(self) -> tuple[str, ...]:
        return () if self.started is None else self.started.axes

    def value(self, trial: int, key: str) -> Any:
        """What `trial` has at a dotted key: as set, or as it follows (a scaling from alpha and r)."""
        asked = self.trials[trial]
        return asked.setting[key] if key in asked.setting else asked.full[FULL[key]]

    def values(self, key: str) -> list[Any]:
        """The distinct ones over all trials, ordered where they are numbers."""
        found = list({repr(v): v for v in (self.value(trial, key) for trial in self.trials)}.values())
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found)
        return sorted(found) if numeric else found

    def varies(self, key: str) -> bool:
        return len(self.values(key)) > 1

    @cached_property
    def is_grid(self) -> bool:
        """Whether every combination of the axes' values was asked."""
        asked = [e for e in self.events if isinstance(e, TrialAsked)]
        levels = [{repr(e.setting[key]) for e in asked} for key in self.axes]
        return len(asked) == math.prod(len(each) for each in levels)

    def behind(self, trial: int, rung: int) -> Interval | None:
        """The paired difference to the rung's leader; None for the leader."""
        rows = self.measured[rung]
        leader = min(rows.values(), key=lambda e: (e.loss, e.trial))
        if leader.trial == trial:
            return None
        return paired_interval(np.array(rows[trial].row_losses), np.array(leader.row_losses))

    def verdict(self) -> str:
        if self.ended is not None:
            return f"{_capital(self.ended.sentence)}."
        if self.started is None:
            return "The study has not begun yet."
        done, all_of = len(self.rungs), len(self.started.rungs)
        if self.leader is None:
            return f"Stopped before the first comparison of {self.started.trials} settings; it can go on with --resume."
        leads = in_words(self.trials[self.leader].setting)
        return f"Not ended: {done} of {all_of} comparisons done. {_capital(leads)} leads; it can go on with --resume."

    def answers(self) -> list[dict[str, Any]]:
        """One entry a row asked: prompt, reference, and the answers of the base and each finalist."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for event in self.events:
            if isinstance(event, Answered):
                who = "base" if event.trial is None else in_words(self.trials[event.trial].setting)
                answer = {"who": who, "answer": event.answer, "match": event.match}
                found.setdefault((event.prompt, event.reference), []).append(answer)
        return [{"prompt": prompt, "reference": wanted, "answers": got} for (prompt, wanted), got in found.items()]


def label(key: str) -> str:
    """What people call an axis: `learning rate`, `scaling`, `r`."""
    return "learning rate" if key == RATE else SHORT.get(key, key.partition(".")[2]).replace("_", " ")


def read_study(folder: Path) -> StudyStory:
    """Everything the report needs from a study's folder. `ConfigError` when it holds no run.yaml."""
    run, _ = load_run_file(folder / "run.yaml")
    return StudyStory(
        folder=folder.absolute(),
        run=run,
        run_text=(folder / "run.yaml").read_text(encoding="utf-8"),
        asked=_asked(folder / "study.json"),
        events=tuple(_events(folder / "events.jsonl")),
    )


def _events(path: Path) -> Sequence[Event]:
    found: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(from_line(line))
        except (ValueError, KeyError, TypeError):
            break
    return found


def _asked(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return held if isinstance(held, dict) else {}


def _capital(text: str) -> str:
    """`r 8` stays as it is written."""
    return text if text.startswith("r ") else text[:1].upper() + text[1:]
