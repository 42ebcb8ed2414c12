"""Where packs are trained. A leg is one pack from the step of one rung to that of the next:

    Leg (members, their states, first → last) ─▶ Engine ─▶ PackStepped*, TrialFailed*, Arrived (states, measurements)

A leg needs nothing but itself, so where it runs, and whether it runs twice, changes no number: this process runs legs
one after the other, `ray_engine` runs them on the machines of a Ray cluster.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorawise.base.errors import ConfigError
from lorawise.base.registry import Registry
from lorawise.tuning.events import PackStepped, TrialFailed, TrialMeasured, WorkerChanged
from lorawise.tuning.pack import Member, Pack, SlotState


@dataclass(frozen=True, kw_only=True, eq=False)
class Leg:
    """`first` steps and `tokens` lie behind each member; one without a state starts fresh."""

    rung: int
    first: int
    last: int
    members: tuple[Member, ...]
    states: Mapping[int, SlotState]
    tokens: int

    @property
    def trials(self) -> tuple[int, ...]:
        return tuple(member.trial for member in self.members)


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrived:
    """The end of a leg: every member's state, and the measurements of those that are alive, which took `seconds`."""

    states: Mapping[int, SlotState]
    measured: tuple[TrialMeasured, ...]
    seconds: float


Told = PackStepped | TrialFailed | WorkerChanged | Arrived


class Engine(Protocol):
    """`width`: packs trained at the same time."""

    width: int

    def train(self, legs: Sequence[Leg]) -> Iterator[Told]:
        """What happens on the legs, each leg's own in order, `Arrived` last; the legs of a call may mix."""
        ...

    def close(self) -> None: ...


class OneProcess:
    """Legs one after the other, over the base that `pack` holds."""

    width = 1

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def train(self, legs: Sequence[Leg]) -> Iterator[Told]:
        for leg in legs:
            yield from travel(self._pack, leg)

    def close(self) -> None:
        """Nothing is held."""


engines: Registry[Callable[[Pack, int | None], Engine]] = Registry("engine")


@engines.register("process")
def process(pack: Pack, workers: int | None) -> Engine:
    if workers not in (None, 1):
        raise ConfigError(f"--workers {workers} with --engine process, which is one", cure="add --engine ray")
    return OneProcess(pack)


@engines.register("ray")
def ray(pack: Pack, workers: int | None) -> Engine:
    from lorawise.tuning.ray_engine import RayCluster

    return RayCluster(pack, workers)


def travel(pack: Pack, leg: Leg) -> Iterator[Told]:
    """One bank from `first` to `last`, then every slot on the validation rows."""
    pack.hold(leg.members, leg.states)
    alive = dict.fromkeys(leg.trials, True)
    tokens = leg.tokens
    for k in range(leg.first, leg.last):
        began = time.perf_counter()
        done = pack.step(k)
        tokens += done.tokens
        yield PackStepped(
            rung=leg.rung,
            step=k + 1,
            trials=leg.trials,
            losses=done.losses,
            rates=done.rates,
            tokens=done.tokens,
            seconds=time.perf_counter() - began,
        )
        for trial, loss, fine in zip(leg.trials, done.losses, pack.trainer.optimizer.alive, strict=True):
            if alive[trial] and not (fine and math.isfinite(loss)):
                alive[trial] = False
                what = f"loss is {loss}" if not math.isfinite(loss) else "gradient is not finite"
                yield TrialFailed(trial=trial, rung=leg.rung, step=k + 1, reason=f"the {what}")
    began = time.perf_counter()
    scores = pack.scores()
    yield Arrived(
        states=pack.lift(),
        seconds=time.perf_counter() - began,
        measured=tuple(
            TrialMeasured(
                trial=trial,
                rung=leg.rung,
                step=leg.last,
                loss=scores.losses[slot],
                row_losses=tuple(scores.row_losses[slot].tolist()),
                tokens=tokens,
            )
            for slot, trial in enumerate(leg.trials)
            if alive[trial]
        ),
    )
