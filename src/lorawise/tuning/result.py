"""What a study came to: its table, its sentence, and the files it leaves."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorawise.report import words
from lorawise.tuning.events import (
    Event,
    RungEnded,
    Setting,
    TrialAsked,
    TrialFailed,
    TrialMeasured,
    TrialState,
)
from lorawise.tuning.rungs import paired_interval


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting of the table. `validation_loss` is its last one, at `step` of `rung`; None: it failed before it was
    measured, or is equal to another trial, whose number `equal_to` is."""

    trial: int
    setting: Setting
    full: Mapping[str, Any]
    state: TrialState
    rung: int
    step: int
    validation_loss: float | None
    tokens: int
    equal_to: int | None


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    study: Path
    best: Row
    rows: tuple[Row, ...]
    seconds: float
    full_run_equivalents: float
    sentence: str

    @property
    def adapter(self) -> Path:
        return self.study / "adapter"

    def document(self) -> dict[str, Any]:
        """For `--json`: the best setting, every trial best first, what it cost."""
        return {
            "study": str(self.study),
            "best": {
                "trial": self.best.trial,
                "setting": dict(self.best.full) | dict(self.best.setting),
                "validation_loss": self.best.validation_loss,
                "adapter": str(self.adapter),
            },
            "trials": [
                {
                    "trial": row.trial,
                    "setting": dict(row.setting),
                    "state": row.state,
                    "validation_loss": row.validation_loss,
                    "step": row.step,
                    "tokens": row.tokens,
                    "equal_to": row.equal_to,
                }
                for row in self.rows
            ],
            "sentence": self.sentence,
            "seconds": self.seconds,
            "full_run_equivalents": self.full_run_equivalents,
        }


def table(events: Sequence[Event], *, ended: bool) -> tuple[Row, ...]:
    """Settings best first: those that came furthest, by loss; then the failed."""
    measured: dict[int, TrialMeasured] = {}
    states: dict[int, TrialState] = {}
    failed_at: dict[int, int] = {}
    asked: list[TrialAsked] = []
    for event in events:
        match event:
            case TrialAsked():
                asked.append(event)
                states[event.trial] = "running" if event.equal_to is None else "equal"
            case TrialMeasured():
                measured[event.trial] = event
            case TrialFailed():
                states[event.trial], failed_at[event.trial] = "failed", event.step
            case RungEnded():
                states |= dict.fromkeys(event.eliminated, "eliminated")
    rows = []
    for each in asked:
        state = states[each.trial]
        state = "finished" if ended and state == "running" else state
        seen = measured.get(each.trial if each.equal_to is None else each.equal_to)
        known = seen is not None and math.isfinite(seen.loss)
        rows.append(
            Row(
                trial=each.trial,
                setting=each.setting,
                full=each.full,
                state=state,
                rung=seen.rung if seen is not None else 0,
                step=failed_at.get(each.trial, seen.step if seen is not None else 0),
                validation_loss=seen.loss if seen is not None and known else None,
                tokens=seen.tokens if seen is not None and each.equal_to is None else 0,
                equal_to=each.equal_to,
            )
        )
    return tuple(sorted(rows, key=_order))


def _order(row: Row) -> tuple[bool, int, float, int]:
    loss = math.inf if row.validation_loss is None else row.validation_loss
    return row.state == "failed", -row.rung, loss, row.trial


def results_csv(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """One line a setting, the best first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "step", "validation_loss", "tokens", "equal_to", *axes])
    for row in rows:
        loss = "" if row.validation_loss is None else repr(row.validation_loss)
        equal = "" if row.equal_to is None else row.equal_to
        writer.writerow([row.trial, row.state, row.step, loss, row.tokens, equal, *(row.setting[a] for a in axes)])
    return out.getvalue()


def sentence(events: Sequence[Event], best: int, own: int | None) -> str:
    """What the paired intervals support about the winner and the run file's own setting, at the last rung both saw."""
    asked = {e.trial: e for e in events if isinstance(e, TrialAsked)}
    rungs: dict[int, dict[int, TrialMeasured]] = {}
    for event in events:
        if isinstance(event, TrialMeasured):
            rungs.setdefault(event.trial, {})[event.rung] = event
    winner = in_words(asked[best].setting)
    if own is None or own not in rungs:
        return f"{winner} is the best of {len(asked)} settings"
    if own == best:
        return f"the run file's own setting, {winner}, is the best of {len(asked)}"
    rung = max(rungs[best].keys() & rungs[own].keys())
    one, other = rungs[best][rung], rungs[own][rung]
    gap = paired_interval(np.array(other.row_losses), np.array(one.row_losses))
    where = f"on {gap.rows} examples after {one.step} steps"
    if gap.tells and gap.mean > 0:
        return f"{winner} beats {in_words(asked[own].setting)} by {gap.mean:.3f} ± {gap.half:.3f} nats {where}"
    return (
        f"{winner} came out first, but {where} it cannot be told from {in_words(asked[own].setting)} "
        f"({gap.mean:+.3f} ± {gap.half:.3f} nats)"
    )


SHORT = {"train.learning_rate": "lr", "lora.target_modules": "targets", "train.lora_plus_ratio": "LoRA+"}


def in_words(setting: Setting) -> str:
    """`scaling 4, lr 1e-4`."""
    return ", ".join(f"{SHORT.get(key, key.partition('.')[2])} {shown(value, key)}" for key, value in setting.items())


def shown(value: Any, key: str = "") -> str:
    """A value of the setting `key` as people write it: 1e-4, 0.5, q_proj+v_proj."""
    if isinstance(value, float):
        return words.rate(value) if key == "train.learning_rate" or 0 < abs(value) < 0.01 else f"{value:.4g}"
    return "+".join(str(part) for part in value) if isinstance(value, (tuple, list)) else str(value)
