"""What past runs of this machine reached, from the facts.json they left: tokens a second of models of a known size.

    expected tokens/s = tokens/s then · FLOPs a token then / FLOPs a token now

A past run's FLOPs a token are taken as 4 · its parameters. One run calibrates to about a quarter; several give their
own spread.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lorawise.planning.pace import Pace, Work

SPREAD = 0.25  # of a single run: another length, batch and neighbour on the machine
FEWEST_TOKENS = 10_000  # a shorter run is mostly warming up


@dataclass(frozen=True, kw_only=True)
class PastRun:
    path: Path
    device: str
    parameters: int
    tokens_per_second: float

    @property
    def flops_per_second(self) -> float:
        return 4.0 * self.parameters * self.tokens_per_second


def past_runs(folder: Path, *, device: str) -> list[PastRun]:
    """Finished runs below `folder` on a device of this kind (`cpu`, `cuda`); what cannot be read is left out."""
    return [run for path in sorted(folder.glob("*/facts.json")) for run in _read(path) if run.device == device]


def _read(path: Path) -> Iterator[PastRun]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return
    match facts:
        case {
            "started": {"device": str(device), "total_parameters": int(parameters)},
            "ended": {"tokens": int(tokens), "tokens_per_second": float(speed)},
        } if tokens >= FEWEST_TOKENS and speed > 0 and parameters > 0:
            kind = device.partition(":")[0]
            yield PastRun(path=path.parent, device=kind, parameters=parameters, tokens_per_second=speed)


def calibrated(work: Work, runs: list[PastRun]) -> Pace | None:
    """What `runs` say of this work; None without any."""
    if not runs:
        return None
    speeds = sorted(run.flops_per_second / work.flops for run in runs)
    middle = median(speeds)
    return Pace(
        tokens_per_second=middle,
        low=min(speeds[0], middle * (1 - SPREAD)),
        high=max(speeds[-1], middle * (1 + SPREAD)),
        because=f"from {len(runs)} past run(s) of this machine, {', '.join(run.path.name for run in runs[:3])}",
    )
