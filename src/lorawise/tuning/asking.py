"""Which settings a study tries: a grid in its order, or what a sampler asks for; each told apart from those before it.

ask() ─▶ TrialAsked (equal_to an earlier one, where both are provably one run)      tell(losses) ─▶ the sampler
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorawise.runfile import RunFile
from lorawise.tuning.events import TrialAsked
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.samplers import Asker
from lorawise.tuning.space import Axis, Grid, grid_of, identity, run_of, setting_of_run


class Proposals:
    """Trials by number, from 0. `journal` is where the sampler writes unless the options name a storage."""

    def __init__(self, axes: Sequence[Axis], run: RunFile, options: StudyOptions, *, journal: Path) -> None:
        self._run, self._axes = run, tuple(axes)
        self._own = setting_of_run(axes, run)
        self._seen: dict[str, int] = {}
        self._equal: dict[int, int] = {}
        self._grid: Iterator[dict[str, Any]] | None = None
        self._asker: Asker | None = None
        if all(isinstance(axis, Grid) for axis in axes):
            self._grid = grid_of(axes)
        else:
            storage = options.storage or journal
            self._asker = Asker(axes, run, sampler=options.sampler, seed=options.seed, storage=storage)

    def ask(self, number: int) -> TrialAsked:
        setting = next(self._grid) if self._grid is not None else self._searched()
        run = run_of(self._run, setting)
        first = self._seen.setdefault(identity(run), number)
        if first != number:
            self._equal[number] = first
        return TrialAsked(
            trial=number,
            setting=setting,
            full={
                "r": run.lora.r,
                "alpha": run.lora.alpha,
                "scaling": run.lora.scaling,
                "learning_rate": run.train.learning_rate,
                "target_modules": run.lora.target_modules,
            },
            origin="the run file" if setting == self._own else "grid" if self._grid is not None else "sampler",
            equal_to=self._equal.get(number),
        )

    def _searched(self) -> dict[str, Any]:
        assert self._asker is not None, "axes are grids or are searched"
        return self._asker.ask()

    def tell(self, numbers: Sequence[int], losses: Mapping[int, float]) -> None:
        """What these came to at the first rung; one without a loss diverged."""
        if self._asker is not None:
            for number in numbers:
                self._asker.tell(number, losses.get(self._equal.get(number, number)))
