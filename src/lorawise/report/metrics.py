"""metrics.jsonl: one line a step and one an evaluation, on disk as soon as it happened.

    {"kind": "step", "step": 12, "loss": 1.03, …}      {"kind": "evaluation", "step": 50, "name": "validation", …}

A number that is not finite is null. A resumed run keeps the lines up to its checkpoint and goes on behind them, so the
file reads as that of a run never stopped.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorawise.base.files import storage_errors, write_text
from lorawise.report.events import Evaluated, Event, StepDone

METRICS_NAME = "metrics.jsonl"


class MetricsFile:
    """A reader that appends to `path`. `resume_at` is the step of the checkpoint gone on from; None starts anew."""

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path = path
        kept = [] if resume_at is None else [line for line in read_metrics(path) if line["step"] <= resume_at]
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        with storage_errors(path):
            self._out = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        match event:
            case StepDone():
                self._write({"kind": "step", **plain(event)})
            case Evaluated():
                self._write({"kind": "evaluation", **plain(event)})

    def close(self) -> None:
        self._out.close()

    def _write(self, line: dict[str, Any]) -> None:
        with storage_errors(self.path):
            self._out.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")
            self._out.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, in order; a torn last line is left out, a missing file is empty."""
    return list(_lines(path)) if path.is_file() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON has them; what is not finite as null; half characters as `?`."""
    match value:
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {str(plain(key)): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)
