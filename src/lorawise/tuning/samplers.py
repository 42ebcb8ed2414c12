"""Which settings to try next: Optuna's samplers by ask and tell, over the axes of a study.

Values of a grid are categories, ranges are distributions. Told losses are those of the first rung. Its storage is a
journal file in the study's folder, or a database URL: `optuna-dashboard` opens either.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorawise.base.errors import ConfigError, UsageError
from lorawise.base.registry import Registry
from lorawise.tuning.space import Axis, Grid, setting_of_run

if TYPE_CHECKING:
    import optuna

    from lorawise.runfile import RunFile

Make = Callable[[int], "optuna.samplers.BaseSampler"]
samplers: Registry[Make] = Registry("sampler")


@samplers.register("tpe")
def tpe(seed: int) -> "optuna.samplers.BaseSampler":
    """Tree-structured Parzen estimator: learns from what was told; its first ten are random."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed)


@samplers.register("random")
def random(seed: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


@samplers.register("qmc")
def qmc(seed: int) -> "optuna.samplers.BaseSampler":
    """Sobol's sequence, scrambled by the seed: covers ranges evenly; categories are drawn at random."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import QMCSampler, RandomSampler

    if find_spec("scipy") is None:
        raise UsageError("the qmc sampler needs SciPy", cure="pip install 'lorawise[tune]', or --sampler tpe")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(seed=seed, scramble=True, independent_sampler=RandomSampler(seed=seed))


class Asker:
    """`ask()` a setting, `tell(number, loss)` what it came to. The run file's own setting is asked first."""

    def __init__(self, axes: Sequence[Axis], run: "RunFile", *, sampler: str, seed: int, storage: str | Path) -> None:
        optuna = _optuna()
        make = samplers[sampler]
        self._axes = tuple(axes)
        self._study = optuna.create_study(sampler=make(seed), storage=_opened(storage), direction="minimize")
        self._trials: list[Any] = []
        own = setting_of_run(axes, run)
        if all(_inside(axis, own[axis.key]) for axis in axes):
            self._study.enqueue_trial({axis.key: _written(axis, own[axis.key]) for axis in axes})

    def ask(self) -> dict[str, Any]:
        trial = self._study.ask()
        self._trials.append(trial)
        return {axis.key: _suggested(trial, axis) for axis in self._axes}

    def tell(self, number: int, loss: float | None) -> None:
        """`number` counts the asks from 0; None: it diverged."""
        from optuna.trial import TrialState

        if loss is None:
            self._study.tell(self._trials[number], state=TrialState.FAIL)
        else:
            self._study.tell(self._trials[number], loss)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("searching a range needs Optuna", cure="pip install 'lorawise[tune]', or give grids") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _opened(storage: str | Path) -> Any:
    """`ConfigError` for a URL that does not answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its journal experimental
        if isinstance(storage, Path):
            from optuna.storages.journal import JournalFileBackend, JournalStorage

            return JournalStorage(JournalFileBackend(str(storage)))
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return RDBStorage(storage)
        except (SQLAlchemyError, ImportError, ValueError) as problem:
            raise ConfigError(
                f"the storage {storage!r} does not answer: {str(problem).splitlines()[0]}",
                expected="a database URL such as sqlite:///studies.db",
                cure="start the database, or leave --storage out: a journal in the study's folder",
            ) from problem


def _suggested(trial: Any, axis: Axis) -> Any:
    if isinstance(axis, Grid):
        return axis.values[int(trial.suggest_categorical(axis.key, list(range(len(axis.values)))))]
    if axis.whole:
        return trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.log)
    return float(f"{trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log):.4g}")


def _inside(axis: Axis, value: Any) -> bool:
    if isinstance(axis, Grid):
        return value in axis.values
    return isinstance(value, (int, float)) and axis.low <= value <= axis.high


def _written(axis: Axis, value: Any) -> Any:
    return axis.values.index(value) if isinstance(axis, Grid) else value
