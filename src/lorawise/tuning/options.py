"""What a study is asked for beside its run file."""

from dataclasses import asdict, dataclass
from typing import Any

from lorawise.base.errors import ConfigError
from lorawise.tuning.budget import parse_budget
from lorawise.tuning.engine import engines
from lorawise.tuning.rungs import eliminations
from lorawise.tuning.samplers import samplers


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """
    over       axes as text (`space`); none: scaling × learning rate around the run file's values
    trials     settings to search where an axis is a range; a grid is tried whole
    budget     what may be spent at most (`budget`): full-run equivalents, tokens or minutes; None: what settings take
    storage    of Optuna, a database URL; None: a journal in the study's folder
    engine     where packs are trained: `process`, this one, or `ray`, a cluster
    workers    of the cluster; None: one a GPU
    """

    over: tuple[str, ...] = ()
    trials: int | None = None
    budget: str | float | None = None
    sampler: str = "tpe"
    eliminate: str = "halving"
    seed: int = 0
    storage: str | None = None
    engine: str = "process"
    workers: int | None = None

    def __post_init__(self) -> None:
        _ = samplers[self.sampler], eliminations[self.eliminate], engines[self.engine]
        if self.trials is not None and self.trials < 1:
            raise ConfigError(f"--trials {self.trials}", expected="at least one")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers {self.workers}", expected="at least one")
        if self.budget is not None:
            parse_budget(str(self.budget))

    def asked(self) -> dict[str, Any]:
        """What a resume must ask for again: where packs are trained is free to change."""
        return {**asdict(self), "over": list(self.over)} | {"engine": None, "workers": None}
