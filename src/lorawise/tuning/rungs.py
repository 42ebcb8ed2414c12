"""When settings are compared, and who goes on: pure functions of their losses.

    rungs     T/ηᵏ, …, T/η, T       a rung keeps ⌈n/η⌉ of n (successive halving: Jamieson & Talwalkar 2016, 1502.07943)

Every setting of a rung has taken the same steps over the same rows, so losses are compared pairwise, row by row.
Shapes: losses (n,), row_losses (n, rows).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ConfigError
from lorawise.base.registry import Registry

ETA = 4
FIRST_RUNG = 15  # optimizer steps: below it warm-up, not the setting, decides
LEVEL = 0.05

Eliminate = Callable[[Sequence[float], NDArray[np.float64]], list[int]]
eliminations: Registry[Eliminate] = Registry("elimination")


def rung_steps(total: int, trials: int, *, eliminate: str) -> tuple[int, ...]:
    """The steps after which settings are compared, the last being `total`."""
    if total < 1 or trials < 1:
        raise ConfigError(f"{trials} settings over {total} steps", expected="at least one of each")
    if eliminate == "none" or trials == 1:
        return (total,)
    levels = max(1, math.ceil(math.log(trials, ETA) - 1e-9))
    steps = sorted({round(total / ETA**k) for k in range(levels + 1)})
    return tuple(step for step in steps if step >= min(FIRST_RUNG, total))


def kept_of(count: int, *, eliminate: str) -> int:
    """Of `count` settings, the most that go on to the next rung."""
    if eliminate == "halving":
        return math.ceil(count / ETA)
    return math.ceil(count / 2) if eliminate == "median" else count


@eliminations.register("halving")
def halving(losses: Sequence[float], row_losses: NDArray[np.float64]) -> list[int]:
    """The best ⌈n/η⌉ by loss."""
    return ranking(losses)[: math.ceil(len(losses) / ETA)]


@eliminations.register("none")
def none(losses: Sequence[float], row_losses: NDArray[np.float64]) -> list[int]:
    """Everyone who did not diverge."""
    return ranking(losses)


@eliminations.register("median")
def median(losses: Sequence[float], row_losses: NDArray[np.float64]) -> list[int]:
    """The better half."""
    return ranking(losses)[: math.ceil(len(losses) / 2)]


@eliminations.register("paired")
def paired(losses: Sequence[float], row_losses: NDArray[np.float64]) -> list[int]:
    """The leader, and all that a Wilcoxon signed-rank test on the rows cannot tell from it at 5 %."""
    order = ranking(losses)
    leader = order[0]
    return [leader, *(i for i in order[1:] if wilcoxon(row_losses[i] - row_losses[leader]) > LEVEL)]


def ranking(losses: Sequence[float]) -> list[int]:
    """Indices, best first; what diverged is left out, ties go to the earlier setting."""
    return sorted((i for i, loss in enumerate(losses) if math.isfinite(loss)), key=lambda i: (losses[i], i))


def wilcoxon(differences: NDArray[np.float64]) -> float:
    """p of the signed-rank test that the differences tend to be above zero; normal approximation, ties corrected
    (Wilcoxon 1945). 1.0 where nothing differs."""
    d = differences[differences != 0]
    n = len(d)
    if n == 0:
        return 1.0
    _, back, counts = np.unique(np.abs(d), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[back]
    positive = float(ranks[d > 0].sum())
    mean = n * (n + 1) / 4
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((counts**3 - counts).sum()) / 48
    if variance <= 0:
        return 1.0
    return 0.5 * math.erfc((positive - mean - 0.5) / math.sqrt(2 * variance))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """mean ± half of the paired differences over `rows` rows: 95 %, by the normal distribution."""

    mean: float
    half: float
    rows: int

    @property
    def tells(self) -> bool:
        """Whether zero is outside."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        """`+0.031 ± 0.008`, without a negative zero."""
        return f"{round(self.mean, 3) + 0.0:+.3f} ± {self.half:.3f}"


def paired_interval(one: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """Of `one` − `other`, row by row; the half is infinite for a single row."""
    d = one - other
    half = 1.96 * float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else math.inf
    return Interval(mean=float(d.mean()), half=half, rows=len(d))
