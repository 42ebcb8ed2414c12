"""How far a run has come: everything that is not a tensor and is needed to go on. Plain JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, get_args

from lorawise.report.events import EndReason, Evaluated, StepDone


@dataclass(frozen=True, kw_only=True)
class Progress:
    """
    step                 optimizer steps done; with the batch plan's seed it is also the position in the data
    best_step, best_loss the evaluation the adapter on disk is from
    waited               evaluations since then, for early stopping
    evaluations          each one's step, name and numbers, in order
    ended                why the run is over; None while it is not
    """

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    waited: int = 0
    evaluations: tuple[Mapping[str, Any], ...] = field(default=())
    ended: EndReason | None = None

    def after(self, done: StepDone) -> Self:
        return replace(
            self,
            step=done.step,
            tokens=self.tokens + done.tokens,
            trained_tokens=self.trained_tokens + done.trained_tokens,
            seconds=self.seconds + done.seconds,
            peak_memory=max(self.peak_memory, done.memory),
        )

    def improves(self, loss: float) -> bool:
        return math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)

    def evaluated(self, event: Evaluated) -> Self:
        numbers = ("step", "name", "loss", "perplexity", "exact_match", "accuracy", "f1")
        known = replace(
            self, evaluations=(*self.evaluations, {name: _finite(getattr(event, name)) for name in numbers})
        )
        if event.name == "base":
            return known
        if event.best:
            return replace(known, best_step=event.step, best_loss=event.loss, waited=0)
        return replace(known, waited=self.waited + 1)

    def loss_of(self, name: str, step: int | None = None) -> float | None:
        """The loss of the last evaluation of that name (at that step)."""
        found = [e["loss"] for e in self.evaluations if e["name"] == name and step in (None, e["step"])]
        return found[-1] if found else None

    def holds(self, name: str, step: int) -> bool:
        """Whether that evaluation was made, finite or not."""
        return any((e["name"], e["step"]) == (name, step) for e in self.evaluations)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """`KeyError`, `TypeError` or `ValueError` for what `to_json` did not write."""
        if saved.get("ended") not in (None, *get_args(EndReason)):
            raise ValueError(f"ended is {saved['ended']!r}")
        return cls(**{**saved, "evaluations": tuple(saved["evaluations"])})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
