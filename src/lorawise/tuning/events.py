"""What a study says while it runs, and the lines of `events.jsonl`: one JSON object an event, `kind` first.

    StudyStarted → TrialAsked+ → (PackStepped* → TrialMeasured+ → RungEnded)+ → ScalingTurned+ → Answered* → StudyEnded
    TrialFailed and WorkerChanged anywhere

A study folder holds

    study.json      what was asked (axes, sampler, elimination, seed, rungs, slots) and of which run file, data and base
    run.yaml        the run file all settings start from, completed
    events.jsonl    every event, in order; a resumed study keeps the lines up to its last rung and goes on behind them
    results.csv     one line a setting: number, state, step, validation_loss, tokens, and a column an axis
    state/          what the next rung starts from, manifest of sha256 last
    optuna.log      Optuna's journal, for optuna-dashboard (a database URL may stand in for it)
    adapters/NN/    the best adapter and the next two, each from the last rung it came to; the best as `adapter/` too
    trackers/       one run a setting for each of `train.trackers`
    report.html     one page of it all, made anew whenever the study ends, stops or is resumed after its end
    best.yaml       a run file that trains the winner's setting by itself

Units: losses in nats a trained token, times in seconds, tokens real ones of the rows (each slot sees the same). A loss
that diverged is NaN here and null in files. Steps count optimizer steps from 1; rungs from 1. No torch in here.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Setting = Mapping[str, Any]  # dotted key of the run file → value: {"lora.scaling": 2.0, "train.learning_rate": 2e-4}
TrialState = Literal["running", "eliminated", "failed", "finished", "equal"]


@dataclass(frozen=True, kw_only=True)
class StudyStarted:
    """`rungs` are the steps after which settings are compared, the last being the whole run; `first_rung` is above 1 on
    a resume. `axes` are the dotted keys that vary. `slots`: settings trained side by side at once, at most."""

    axes: tuple[str, ...]
    rungs: tuple[int, ...]
    trials: int
    slots: int
    sampler: str
    eliminate: str
    first_rung: int
    rows: int
    validation_rows: int
    base_loss: float


@dataclass(frozen=True, kw_only=True)
class TrialAsked:
    """`full` shows r, alpha, scaling, learning_rate and target_modules whatever varies; `equal_to` names an earlier
    trial that is the same run, which is not repeated."""

    trial: int
    setting: Setting
    full: Mapping[str, Any]
    origin: Literal["the run file", "grid", "sampler"]
    equal_to: int | None = None


@dataclass(frozen=True, kw_only=True)
class PackStepped:
    """One step of the settings `trials` side by side; `losses` in their order, before the update."""

    rung: int
    step: int
    trials: tuple[int, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialMeasured:
    """On all validation rows after `step`; `row_losses` are each row's own mean, in the order of the rows."""

    trial: int
    rung: int
    step: int
    loss: float
    row_losses: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TrialFailed:
    """A slot whose loss or gradient was not finite; it never moves again, and the others did not notice."""

    trial: int
    rung: int
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class WorkerChanged:
    """A worker of a cluster joined, or was lost with the settings `trials` in hand, which go on elsewhere."""

    host: str
    pid: int
    state: Literal["joined", "lost"]
    trials: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RungEnded:
    """Who goes on. `ranking` is by loss, best first, over those measured at this rung. `seconds` of the whole rung, its
    evaluation counted; `evaluation_seconds` what measuring took, summed over the packs."""

    rung: int
    step: int
    ranking: tuple[int, ...]
    kept: tuple[int, ...]
    eliminated: tuple[int, ...]
    seconds: float
    evaluation_seconds: float


@dataclass(frozen=True, kw_only=True)
class ScalingTurned:
    """The winner's trained adapter at `factor` times its scaling, on all validation rows; 0 is the base alone."""

    trial: int
    factor: float
    loss: float
    row_losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One validation row answered greedily by a finalist; `trial` None: by the base alone."""

    trial: int | None
    prompt: str
    reference: str
    answer: str
    match: bool


@dataclass(frozen=True, kw_only=True)
class StudyEnded:
    """`full_run_equivalents`: slot-steps trained over the steps of one whole run."""

    best: int
    loss: float
    seconds: float
    full_run_equivalents: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class StudyResumed:
    """The first thing readers are told when a study goes on: what had been told before, steps aside. Never written."""

    told: tuple["Event", ...]


Event = (
    StudyStarted
    | TrialAsked
    | PackStepped
    | TrialMeasured
    | TrialFailed
    | WorkerChanged
    | RungEnded
    | ScalingTurned
    | Answered
    | StudyEnded
)
KINDS: dict[str, type[Event]] = {
    "study": StudyStarted,
    "trial": TrialAsked,
    "step": PackStepped,
    "measured": TrialMeasured,
    "failed": TrialFailed,
    "worker": WorkerChanged,
    "rung": RungEnded,
    "turned": ScalingTurned,
    "answered": Answered,
    "ended": StudyEnded,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def asked_trials(events: Sequence[Event]) -> list[TrialAsked]:
    return [event for event in events if isinstance(event, TrialAsked)]


def measured_in(events: Sequence[Event], rung: int) -> list[TrialMeasured]:
    """The measurements of one rung, in the order they came."""
    return [event for event in events if isinstance(event, TrialMeasured) and event.rung == rung]


class Reader(Protocol):
    def __call__(self, event: Event | StudyResumed) -> None: ...


def to_line(event: Event) -> str:
    """The event as one line of JSON."""
    return json.dumps({"kind": _NAMES[type(event)], **_plain(dataclasses.asdict(event))}, allow_nan=False)


def from_line(line: str) -> Event:
    """The inverse of `to_line`. `ValueError`, `KeyError` or `TypeError` for what it did not write."""
    values = json.loads(line)
    kind = KINDS[values.pop("kind")]
    known = {f.name: f for f in dataclasses.fields(kind)}
    return kind(**{name: _revived(value, str(known[name].type)) for name, value in values.items()})


def _revived(value: Any, kind: str) -> Any:
    if value is None and kind == "float":
        return math.nan
    if isinstance(value, list):
        return tuple(math.nan if x is None else x for x in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value
