"""Two models on the same rows: by how much one is better, and how sure that is.

    loss         Σ losses / Σ tokens of `one` minus that of `other`: below zero, `one` is better. The interval is the
                 paired bootstrap's: rows drawn with replacement, both models over the same draw, the middle 95 % of the
                 differences (Efron and Tibshirani 1993, chapter 13)
    exact match  share right of `one` minus that of `other`: above zero, `one` is better. The interval is Agresti and
                 Min's for matched proportions (2005): half a pair is added to each of the four outcomes, so that few
                 rows, or none on which the two differ, do not pass for certainty

Both models saw the same rows, so what is hard about a row cancels, and the intervals are far narrower than those of
the models apart. Shapes: losses and tokens (rows,), a row's mean loss and what it is a mean over; right (rows,) bool.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
_AT_ONCE = 2_000_000  # cells of a table of draws × rows held in memory
_NORMAL = 1.959964  # of 95 %


@dataclass(frozen=True, kw_only=True)
class Gap:
    """`difference` of one − other, and its 95 % interval; the interval is infinite for fewer than two rows."""

    difference: float
    low: float
    high: float
    rows: int

    @property
    def tells(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0


def loss_gap(one: NDArray[np.float64], other: NDArray[np.float64], tokens: NDArray[np.int64], *, seed: int = 0) -> Gap:
    """Of the losses of two models on the same rows; NaN where either diverged."""
    sums, weights = (one - other) * tokens, tokens.astype(np.float64)
    rows, difference = len(sums), float(sums.sum() / weights.sum())
    if not math.isfinite(difference):
        return Gap(difference=math.nan, low=math.nan, high=math.nan, rows=rows)
    if rows < 2:
        return Gap(difference=difference, low=-math.inf, high=math.inf, rows=rows)
    generator = np.random.default_rng(seed)
    drawn: list[NDArray[np.float64]] = []
    step = max(1, _AT_ONCE // rows)
    for first in range(0, DRAWS, step):
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(step, DRAWS - first))
        drawn.append(counts @ sums / (counts @ weights))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Gap(difference=difference, low=float(low), high=float(high), rows=rows)


def match_gap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Gap:
    """Of the shares of rows answered right by two models."""
    rows = len(one)
    if not rows:
        return Gap(difference=0.0, low=-1.0, high=1.0, rows=0)
    won, lost = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    more, fewer, total = won + 0.5, lost + 0.5, rows + 2
    middle = (more - fewer) / total
    half = _NORMAL * math.sqrt(more + fewer - (more - fewer) ** 2 / total) / total
    return Gap(difference=(won - lost) / rows, low=max(-1.0, middle - half), high=min(1.0, middle + half), rows=rows)
