"""The learning rate over a run: a pure function of the step, between 0 and 1.

    linear warm-up over w steps, factor (k + 1)/(w + 1) for k < w; then, with x = (k − w)/(T − w) ∈ [0, 1),
    constant 1      linear 1 − x      cosine ½(1 + cos πx)      wsd 1 until x = 0.8, then 1 − √((x − 0.8)/0.2)

k counts optimizer steps from 0, T is the run's length. No factor of a step is 0: every step moves.
wsd (warm-up, stable, decay) with a decay of 1 − √ over the last fifth: Hägele et al. 2024, arXiv 2405.18392.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lorawise.base.errors import ConfigError
from lorawise.base.registry import Registry

DECAY_SHARE = 0.2

schedules: Registry[Callable[[float], float]] = Registry("schedule")


@schedules.register("constant")
def constant(_: float) -> float:
    return 1.0


@schedules.register("linear")
def linear(done: float) -> float:
    return 1.0 - done


@schedules.register("cosine")
def cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


@schedules.register("wsd")
def warmup_stable_decay(done: float) -> float:
    decayed = (done - (1.0 - DECAY_SHARE)) / DECAY_SHARE
    return 1.0 if decayed <= 0 else 1.0 - math.sqrt(decayed)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`schedule(k)` is the factor of step k = 0, 1, … of `total`. `warmup` is in steps (see `warmup_steps`)."""

    name: str
    total: int
    warmup: int = 0

    def __post_init__(self) -> None:
        _ = schedules[self.name]
        if self.total < 1:
            raise ConfigError(
                f"a run of {self.total} steps", expected="at least one", cure="raise train.epochs or steps"
            )
        if not 0 <= self.warmup < self.total:
            raise ConfigError(
                f"a warm-up of {self.warmup} steps in a run of {self.total}",
                expected="a warm-up shorter than the run",
                cure="lower train.warmup, or give it as a share such as 0.03",
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return schedules[self.name](min((step - self.warmup) / (self.total - self.warmup), 1.0))


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: a whole number is steps, a fraction a share of the run, rounded up but never all of it."""
    if isinstance(warmup, int):
        return warmup
    if not 0 <= warmup < 1:
        raise ConfigError(f"warmup={warmup!r}", expected="a whole number of steps, or a share below 1")
    return min(math.ceil(warmup * total), total - 1)
