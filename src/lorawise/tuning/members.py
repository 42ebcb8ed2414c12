"""A setting as a slot of a pack: the run file with the setting over it, and its rate over the rungs.

All settings share one shape of schedule: warm-up, then held until the last rung begins, then the run file's decay for
those that came so far. A rate that decays from the start mis-ranks high rates at an early rung.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorawise.runfile import RunFile
from lorawise.training.schedule import schedules, warmup_steps
from lorawise.training.setup import lora_config, slot_settings
from lorawise.tuning.pack import Member
from lorawise.tuning.shared import Shared


@dataclass(frozen=True, kw_only=True)
class HeldThenDecayed:
    """Factor of step k: warm-up, 1 until `held`, then the named schedule's decay over the rest of `total`."""

    name: str
    warmup: int
    held: int
    total: int

    def __call__(self, k: int) -> float:
        if k < self.warmup:
            return (k + 1) / (self.warmup + 1)
        return 1.0 if k < self.held else schedules[self.name]((k - self.held) / (self.total - self.held))


def member_of(run: RunFile, *, trial: int, rungs: Sequence[int], shared: Shared = ()) -> Member:
    """`run` has the setting over it; `rungs` are the steps at which it will be compared, the last one the end."""
    warmup = warmup_steps(run.train.warmup, rungs[-1])
    return Member(
        trial=trial,
        config=lora_config(run, head=False),
        optimiser=slot_settings(run),
        schedule=HeldThenDecayed(
            name=run.train.schedule,
            warmup=warmup,
            held=rungs[-2] if len(rungs) > 1 else warmup,
            total=rungs[-1],
        ),
        rungs=tuple(rungs),
        shared=shared,
    )
