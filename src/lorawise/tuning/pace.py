"""How fast a study goes and how long it will take: steps that are left, times what a step of so many settings took.

left ≈ Σ over rungs (settings expected · steps left) · seconds a setting's step, by packs as large as those will be
"""

import math
from dataclasses import dataclass, field

from lorawise.tuning.events import Event, PackStepped, RungEnded, StudyStarted, TrialAsked, TrialFailed, WorkerChanged
from lorawise.tuning.rungs import ETA

RECENT = 0.1  # weight of the newest step in a mean


@dataclass
class Pace:
    """Told every event; a study that was resumed is told what came before, steps aside."""

    started: StudyStarted | None = None
    workers: int = 0  # of a cluster; none in one process
    _seconds: dict[int, float] = field(default_factory=dict)  # settings side by side → seconds of a step
    _rates: dict[tuple[int, ...], float] = field(default_factory=dict)  # pack → tokens a second, all its settings
    _done: int = 0  # settings' steps of this rung
    _rung: int = 1
    _now: int = 0  # settings of this rung
    _evaluation: float = 0.0  # seconds a setting, at the last rung

    def __call__(self, event: Event) -> None:
        match event:
            case StudyStarted():
                self.started = event
            case TrialAsked():
                self._now += event.equal_to is None
            case PackStepped():
                self._step(event)
            case TrialFailed():
                self._rates.clear()
            case WorkerChanged():
                self.workers += 1 if event.state == "joined" else -1
                self._rates.clear()
            case RungEnded():
                self._evaluation = event.evaluation_seconds / max(len(event.ranking), 1)
                self._rung, self._done, self._now = event.rung + 1, 0, len(event.kept)
                self._rates.clear()

    def _step(self, event: PackStepped) -> None:
        side = len(event.trials)
        before = self._seconds.get(side, event.seconds)
        self._seconds[side] = before + RECENT * (event.seconds - before)
        self._rates[event.trials] = event.tokens * side / event.seconds if event.seconds else 0.0
        self._done += side

    def tokens_per_second(self) -> float:
        """Of all settings that train now. A pack that has ended is forgotten when as many others are heard of."""
        newest = list(self._rates.values())[-max(self.workers, 1) :]
        return math.fsum(newest)

    def left(self) -> float | None:
        """Seconds, None before the first step. Settings that will be kept are guessed by the elimination's share."""
        if self.started is None or not self._seconds:
            return None
        rungs, settings = self.started.rungs, float(max(self._now, self._asked()))
        total = 0.0
        for rung in range(self._rung, len(rungs) + 1):
            steps = rungs[rung - 1] - (rungs[rung - 2] if rung > 1 else 0)
            done = self._done if rung == self._rung else 0
            side = max(1, min(self.started.slots, math.ceil(settings / max(self.workers, 1))))
            total += max(settings * steps - done, 0) * self._a_step(side) + settings * self._evaluation
            settings = math.ceil(settings * _kept(self.started.eliminate))
        return total / max(self.workers, 1)

    def _asked(self) -> int:
        """All settings of the study are in its first rung, asked or not yet."""
        return self.started.trials if self.started is not None and self._rung == 1 else 0

    def _a_step(self, side: int) -> float:
        """Seconds a setting's step, from the pack size seen that is nearest."""
        nearest = min(self._seconds, key=lambda seen: abs(math.log(seen / side)))
        return self._seconds[nearest] / nearest


def _kept(eliminate: str) -> float:
    """The share that goes on; `paired` keeps what it cannot tell apart, at most all."""
    return {"halving": 1 / ETA, "median": 0.5}.get(eliminate, 1.0)
