"""What a study may cost, and what it would: full-run equivalents are the coin, tokens and minutes are changed into it.

    2.5  |  200k tokens  |  30 min, 2 h        cost = Σ over rungs  settings left · steps of the rung / steps of a run

Minutes are changed at the pace of two steps measured before the study, one setting alone, its evaluation counted; side
by side settings take less, so a study ends within its minutes. What was measured is kept for a resume.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lorawise.base.errors import ConfigError
from lorawise.training.setup import Prepared
from lorawise.tuning.rungs import kept_of, rung_steps

Unit = Literal["runs", "tokens", "minutes"]
_WRITTEN = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*([kM]?)\s*([a-z]*)")
_UNITS: dict[str, tuple[Unit, float]] = {
    "": ("runs", 1.0),
    "runs": ("runs", 1.0),
    "tokens": ("tokens", 1.0),
    "min": ("minutes", 1.0),
    "minutes": ("minutes", 1.0),
    "h": ("minutes", 60.0),
    "hours": ("minutes", 60.0),
}
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6}
MOST_TRIALS = 256  # searched, however much may be spent
TIMED = 2  # steps, after one that warms up


@dataclass(frozen=True, kw_only=True)
class Budget:
    amount: float
    unit: Unit

    def in_runs(self, prepared: Prepared) -> float:
        """Full-run equivalents; measures two steps and an evaluation where the unit is minutes."""
        if self.unit == "runs":
            return self.amount
        if self.unit == "tokens":
            return self.amount / _tokens_of_a_run(prepared)
        return 60 * self.amount / _seconds_of_a_run(prepared)


def parse_budget(text: str) -> Budget:
    """`ConfigError` for what is no amount of runs, tokens or minutes above zero."""
    written = _WRITTEN.fullmatch(text.strip())
    try:
        amount = float(written[1]) * _FACTORS[written[2]] if written is not None else math.nan
    except ValueError:
        amount = math.nan
    if written is None or written[3] not in _UNITS or not 0 < amount < math.inf:
        raise ConfigError(
            f"--budget {text!r}", expected="full-run equivalents (2.5), tokens (200k tokens) or 30 min, 2 h"
        )
    unit, each = _UNITS[written[3]]
    return Budget(amount=amount * each, unit=unit)


def cost(total: int, count: int, *, eliminate: str) -> float:
    """Full-run equivalents of `count` settings; where rows decide who stays (`paired`), as if everyone did."""
    spent, before, left = 0.0, 0, count
    for step in rung_steps(total, count, eliminate=eliminate):
        spent += left * (step - before) / total
        before, left = step, kept_of(left, eliminate=eliminate)
    return spent


def trials_within(runs: float, total: int, *, eliminate: str) -> int:
    """The most settings that may be tried for `runs`, up to `MOST_TRIALS`; 0 where not even one may."""
    within = [n for n in range(1, MOST_TRIALS + 1) if cost(total, n, eliminate=eliminate) <= runs + 1e-9]
    return max(within, default=0)


def require_within(runs: float, total: int, count: int, *, eliminate: str, written: str) -> None:
    """`ConfigError` when `count` settings take more than may be spent."""
    needed = cost(total, count, eliminate=eliminate)
    if needed <= runs + 1e-9:
        return
    first = rung_steps(total, count, eliminate=eliminate)[0]
    below = "below one rung: " if runs < count * first / total else ""
    fitting = trials_within(runs, total, eliminate=eliminate)
    raise ConfigError(
        f"--budget {written} is {below}{_in_runs(written, runs)}less than the {needed:.2f} full-run equivalents that "
        f"{count} settings take",
        cure=f"raise --budget, or try at most {fitting} settings" if fitting else "raise --budget",
    )


def _in_runs(written: str, runs: float) -> str:
    """Nothing where runs were written: `0.1` is said once."""
    return "" if parse_budget(written).unit == "runs" else f"{runs:.2f} runs, "


def _tokens_of_a_run(prepared: Prepared) -> float:
    plan = prepared.trainer.plan
    return prepared.inputs.train.tokens / plan.steps_per_epoch * prepared.total


def _seconds_of_a_run(prepared: Prepared) -> float:
    """Nothing moves: gradients are taken and dropped."""
    trainer, evaluator = prepared.trainer, prepared.evaluator
    assert evaluator is not None, "a study without validation rows was refused"
    times = [_timed(partial(trainer.accumulate, k, trainer.plan.step(k))) for k in range(TIMED + 1)]
    trainer.optimizer.zero_grad()
    evaluation = _timed(partial(evaluator, 0, "base"))
    return min(times[1:]) * prepared.total + evaluation


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
