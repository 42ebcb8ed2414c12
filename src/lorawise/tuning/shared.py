"""What the settings of one pack must share: rows, batch and length. An axis of these is an outer one, a pack a value.

Validation rows stay those of the run file whatever an outer axis says, so that all settings are compared on the same.
Where the run file counts epochs, another batch means another number of steps: rungs then lie at the same shares of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorawise.data.batches import BatchPlan
from lorawise.training.inputs import read_inputs
from lorawise.training.setup import Prepared
from lorawise.tuning.space import SHARED, Axis, grid_of, run_of

Shared = tuple[tuple[str, Any], ...]  # of a setting: its outer keys and their values, () for those of the run file


def shared_of(setting: Mapping[str, Any]) -> Shared:
    return tuple((key, value) for key, value in setting.items() if key in SHARED)


def every_shared(axes: Sequence[Axis]) -> Iterator[Shared]:
    """Every combination of the outer axes, in the order of the grid."""
    for setting in grid_of([axis for axis in axes if axis.key in SHARED]):
        yield shared_of(setting)


def rungs_within(rungs: Sequence[int], total: int) -> tuple[int, ...]:
    """`rungs` at the same shares of a run of `total` steps; strictly rising, the last one its end."""
    scaled: list[int] = []
    for number, step in enumerate(rungs):
        least = scaled[-1] + 1 if scaled else 1
        most = total - (len(rungs) - 1 - number)
        scaled.append(min(max(round(total * step / rungs[-1]), least), most))
    return tuple(scaled)


class Plans:
    """The batch plan of every shared part that is asked for, made once."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._made: dict[Shared, BatchPlan] = {(): prepared.trainer.plan}

    def of(self, shared: Shared) -> BatchPlan:
        if shared not in self._made:
            self._made[shared] = self._make(shared)
        return self._made[shared]

    def total(self, shared: Shared) -> int:
        """Steps of a whole run."""
        train = self._prepared.run.train
        return train.steps or self.of(shared).steps_in(train.epochs or 1.0)

    def _make(self, shared: Shared) -> BatchPlan:
        run, rows = run_of(self._prepared.run, dict(shared)), self._prepared.inputs.train
        if any(key == "train.max_length" for key, _ in shared):
            rows = read_inputs(run, self._prepared.files).train
        options = self._prepared.trainer.plan.options
        micro = max(options.micro_batch_tokens or 0, int(rows.lengths.max()))
        return BatchPlan(
            rows,
            replace(
                options,
                batch_tokens=run.train.batch_tokens,
                batch_size=run.train.batch_size,
                micro_batch_tokens=micro,
                seed=run.train.seed,
            ),
        )
