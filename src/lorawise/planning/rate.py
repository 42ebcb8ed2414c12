"""The learning rate: the guide's rule and what was measured, brought into one formula with an interval.

    lr = 2e-4 / scaling · √(32 / r) · g(b)          g(16) = 1, g(128) = 1.5, a power law between, flat outside

Three statements disagree only in how the rate follows the rank at a fixed scaling (exponent of 32/r):

    0     the guide: lr = 2e-4 / scaling, whatever the rank
    1     alpha · lr fixed: LoRA Without Regret finds the best rate independent of r when alpha stays 32
    0.41  measured: the best rate falls 5.6-fold from r 4 to r 256 (arXiv 2602.04998): ln 5.6 / ln 64

The formula takes 1/2, the middle of the first two and nearest to the third: s·√r·lr is kept. The anchors of g are the
guide's script (16 rows a step, 2e-4 at scaling 1) and the public sweep (128 rows, scaling 1, best at 3e-4), where the
formula gives 3e-4 itself. The interval is that of the best rates in that sweep: a third to 10/3 of the rate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lorawise.planning.evidence import SHIPPED, SWEEP, Sweep

GUIDE_RATE = 2e-4  # at scaling 1 (the guide: lr = 2e-4 / scaling_factor as a baseline)
GUIDE_BATCH = 16  # rows a step in the guide's script: 4 · 4
GUIDE_UNSTABLE = 4.0 * 5e-4  # scaling · lr that the guide warns of: loss spikes
ANCHOR_RANK = 32  # of the sweep, and of the alpha at which LoRA Without Regret states its law
LAWS: Mapping[str, float] = {"the guide": 0.0, "lorawise": 0.5, "alpha fixed": 1.0}
BATCH_EXPONENT = math.log(SWEEP.fixed / GUIDE_RATE) / math.log(SWEEP.batch / GUIDE_BATCH)  # 0.195; √b would be 0.5


def learning_rate(*, r: int, scaling: float, batch: float = GUIDE_BATCH, law: str = "lorawise") -> float:
    """The advised peak rate for `batch` rows a step; `law` names one of `LAWS`."""
    rows = min(max(batch, GUIDE_BATCH), SWEEP.batch)
    return float(GUIDE_RATE / scaling * (ANCHOR_RANK / r) ** LAWS[law] * (rows / GUIDE_BATCH) ** BATCH_EXPONENT)


def interval(rate: float, scaling: float) -> tuple[float, float]:
    """From a third to 10/3 of `rate`, where the sweep's best rates lie; below what the guide calls unstable."""
    low, high = rate * min(SWEEP.best) / SWEEP.fixed, rate * max(SWEEP.best) / SWEEP.fixed
    return low, max(rate, min(high, GUIDE_UNSTABLE / scaling))


def strength(*, alpha: float, rate: float) -> float:
    """alpha · lr: how fast the function moves at first, whatever the rank (kaiming's A; EVIDENCE 2)."""
    return alpha * rate


def strength_in_words(value: float) -> str:
    """`about what Unsloth ships; 5× what TRL's CLI does`."""
    near = min(SHIPPED, key=lambda each: abs(math.log(value / each.strength)))
    ratio = value / near.strength
    if 0.8 <= ratio <= 1.25:
        first = f"about what {near.tool} ships"
    elif ratio > 1:
        first = f"{_times(ratio)} what {near.tool} ships"
    else:
        first = f"1/{_times(1 / ratio)[:-1]} of what {near.tool} ships"
    trl = next(each for each in SHIPPED if each.tool == "TRL's CLI")
    return first if near is trl else f"{first}; {_times(value / trl.strength)} what {trl.tool} does"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 3 else f"{ratio:.2g}×"


def rounded(value: float, digits: int = 2) -> float:
    """To `digits` significant digits: a learning rate is never known better."""
    return float(f"{value:.{digits - 1}e}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One rule on a sweep. `best_in` of `models` had this rate as their best of those tried; `median` and `worst` are
    its loss against each model's own best, None where the published figures do not hold them."""

    rule: str
    rate: float
    best_in: int | None
    models: int
    median: float | None
    worst: float | None


def score(rule: str, rate: float, sweep: Sweep = SWEEP) -> Score:
    """What the sweep's published aggregates say of `rate`. They hold the regret of one fixed rate only; of a rate that
    was not tried they say nothing."""
    tried = next((known for known in (*sweep.best, sweep.diverging) if math.isclose(known, rate, rel_tol=0.02)), None)
    fixed = tried is not None and math.isclose(tried, sweep.fixed)
    return Score(
        rule=rule,
        rate=rate,
        best_in=None if tried is None else sweep.best.get(tried, 0),
        models=sweep.models,
        median=sweep.median if fixed else None,
        worst=sweep.worst if fixed else None,
    )


def scores(sweep: Sweep = SWEEP) -> tuple[Score, ...]:
    """Every rule this project knows of, at the sweep's own r, alpha and batch."""
    scaling = sweep.alpha / sweep.r
    rules = {
        f"lorawise: 2e-4/s · √(32/r) · g({sweep.batch})": learning_rate(r=sweep.r, scaling=scaling, batch=sweep.batch),
        "fixed 3e-4, the sweep's own baseline": sweep.fixed,
        "the guide: 2e-4 / scaling": GUIDE_RATE / scaling,
        "fixed 1e-3": 1e-3,
        "fixed 1e-4 (LLaMA-Factory, ms-swift)": 1e-4,
        "fixed 2e-4 (Unsloth, TRL's docs)": 2e-4,
    }
    return tuple(score(rule, rate, sweep) for rule, rate in rules.items())
