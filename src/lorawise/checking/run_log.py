"""What a run wrote while it trained: our metrics.jsonl, or the log of Hugging Face's trainer_state.json.

Points are in the order of the file; a loss that is null or NaN is NaN. At most `MAX_POINTS` are read.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorawise.checking.files import Unreadable
from lorawise.checking.setting import Setting

MAX_POINTS = 200_000
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One logged step. What the log does not hold is None; `line` is of the file."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None
    line: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """`setting` is what the run was asked, where the folder says so; `saved` the steps of its checkpoints;
    `ended` why it ended (`finished`, `diverged`, …), where facts.json is beside it."""

    path: str
    points: tuple[Point, ...]
    evaluations: tuple[Point, ...] = ()
    setting: Setting | None = None
    saved: tuple[int, ...] = field(default_factory=tuple)
    ended: str | None = None

    @property
    def losses(self) -> list[float]:
        """Finite training losses, in order."""
        return [point.loss for point in self.points if point.loss is not None and math.isfinite(point.loss)]


def read_metrics_log(text: str, path: str) -> RunLog:
    """metrics.jsonl: `{"kind": "step" | "evaluation", "step": …, "loss": …}` a line; a torn last line is left out."""
    points: list[Point] = []
    evaluations: list[Point] = []
    for number, raw in enumerate(text.splitlines()[:MAX_POINTS], 1):
        entry = _parsed(raw)
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        point = _point(entry, loss=entry.get("loss", NAN), line=number)
        if entry.get("kind") == "step":
            points.append(point)
        elif entry.get("kind") == "evaluation" and entry.get("name", "validation") == "validation":
            evaluations.append(point)
    return RunLog(path=path, points=tuple(points), evaluations=tuple(evaluations))


def read_trainer_state(text: str, path: str) -> RunLog:
    """trainer_state.json: `log_history`, a list of dicts. Raises `Unreadable` when there is none."""
    state = _parsed(text)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise Unreadable("LW003", "is no trainer state: it has no log_history")
    places = _lines_of_entries(text, len(history))
    points: list[Point] = []
    evaluations: list[Point] = []
    for index, entry in enumerate(history[:MAX_POINTS]):
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        line = places[index] if index < len(places) else None
        if "eval_loss" in entry:
            evaluations.append(_point(entry, loss=entry["eval_loss"], line=line))
        elif "loss" in entry:
            points.append(_point(entry, loss=entry["loss"], line=line))
    return RunLog(path=path, points=tuple(points), evaluations=tuple(evaluations))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _point(entry: Mapping[str, Any], *, loss: object, line: int | None) -> Point:
    return Point(
        step=entry["step"],
        loss=NAN if loss is None else _number(loss),
        learning_rate=_number(entry.get("learning_rate")),
        gradient_norm=_number(entry.get("gradient_norm", entry.get("grad_norm"))),
        tokens_per_second=_number(entry.get("tokens_per_second")),
        line=line,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _lines_of_entries(text: str, count: int) -> list[int]:
    """The line of each log entry's "step", in a file that Trainer wrote with one key a line; none for one long line."""
    start = text.find('"log_history"')
    found = [n for n, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith('"step"')]
    before = text.count("\n", 0, max(start, 0))
    inside = [line for line in found if line > before]
    return inside if len(inside) == count else []


def rolling_median(values: list[float], width: int) -> Iterator[float]:
    """The median of the `width` values before each one (itself where there are none)."""
    for index, value in enumerate(values):
        window = sorted(values[max(0, index - width) : index])
        yield window[len(window) // 2] if window else value
