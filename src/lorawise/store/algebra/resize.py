"""Fewer parameters for the same update: each module's ΔW cut to its largest singular values (Eckart and Young 1936).

    kept energy = Σ kept σ² / Σ σ²        error = √(1 − kept energy)

How the ranks are spread over the modules is one family of choices, from less to more; what is asked for (a rank, an
energy, a number of parameters) picks one member of it.
    uniform   one rank for all
    layer     each module keeps the same share of its own energy
    all       one threshold over the singular values of all modules; for a budget, over energy per parameter
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ConfigError
from lorawise.base.registry import Registry
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Array, Factors, effective_rank, svd
from lorawise.store.algebra.result import computed, config_with_ranks, experts_of, shapes_of

Ranks = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One of the three: the largest rank, the smallest share of energy kept, or the most parameters."""

    rank: int | None = None
    energy: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{' and '.join(given) or 'neither rank, energy nor budget'} given", expected="one of the three"
            )
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank={self.rank} is not a whole number from 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy={self.energy:g} is not in (0, 1]", cure="write 0.95 for 95 %")
        if self.budget is not None and self.budget < 1:
            raise ConfigError(f"budget={self.budget} is not a whole number from 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectra:
    """Of every module: its singular values, descending, and what one rank of it costs in parameters, in + out."""

    values: Mapping[str, Array]
    costs: Mapping[str, int]

    @classmethod
    def of(cls, adapter: StoredAdapter) -> "Spectra":
        """A pass over the adapter, one module in memory at a time."""
        experts = experts_of(adapter)
        return cls(
            values={module: Factors.of(adapter, module).singular_values() for module in adapter.layers},
            costs={module: experts[module] * sum(w) for module, w in shapes_of(adapter).items()},
        )

    def parameters(self, ranks: Ranks) -> int:
        return sum(self.costs[module] * rank for module, rank in ranks.items())

    def energy(self, ranks: Ranks) -> float:
        """The share of Σσ² over all modules that these ranks keep."""
        whole = sum(float(np.sum(values**2)) for values in self.values.values())
        lost = sum(float(np.sum(self.values[module][rank:] ** 2)) for module, rank in ranks.items())
        return 1 - lost / whole if whole else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """A family of ranks from fewer to more: `ranks(level)` grows with `level`, and every level is worth trying."""

    values: NDArray[np.float64]  # ascending
    ranks: Callable[[float], Ranks]


Spread = Callable[[Spectra, Goal], Levels]
SPREADS: Registry[Spread] = Registry("spread")


@SPREADS.register("uniform")
def _uniform(spectra: Spectra, goal: Goal) -> Levels:
    most = max((len(values) for values in spectra.values.values()), default=1)
    return Levels(
        values=np.arange(1.0, most + 1),
        ranks=lambda level: {module: min(int(level), len(values)) for module, values in spectra.values.items()},
    )


@SPREADS.register("layer")
def _layer(spectra: Spectra, goal: Goal) -> Levels:
    shares = [np.cumsum(values**2) / max(np.sum(values**2), 1e-300) for values in spectra.values.values()]
    asked = [] if goal.energy is None else [goal.energy]
    return Levels(
        values=np.unique(np.concatenate([*shares, asked])),
        ranks=lambda level: {module: max(1, effective_rank(v, level)) for module, v in spectra.values.items()},
    )


@SPREADS.register("all")
def _all(spectra: Spectra, goal: Goal) -> Levels:
    prices = {module: 1.0 if goal.budget is None else cost for module, cost in spectra.costs.items()}
    worth = {module: values**2 / prices[module] for module, values in spectra.values.items()}
    return Levels(
        values=np.unique(-np.concatenate(list(worth.values()))),
        ranks=lambda level: {module: max(1, int(np.sum(each >= -level))) for module, each in worth.items()},
    )


def ranks_for(spectra: Spectra, goal: Goal, spread: str = "") -> Ranks:
    """The rank of every module. By default a rank is spread uniformly, an energy by layer, a budget over all.

    rank    the largest member of the family whose mean rank (uniform: every rank) is at most this
    energy  the smallest member that keeps this share of the whole energy (layer: of every module's own)
    budget  the largest member of at most this many parameters

    `ConfigError` when the goal is below the smallest member, or a rank above all there is.
    """
    levels = SPREADS[spread or ("uniform" if goal.rank else "layer" if goal.energy else "all")](spectra, goal)
    if goal.energy is not None:
        asked = goal.energy * (1 - 1e-12)
        if spread in ("", "layer"):
            return levels.ranks(goal.energy)
        fewest = _first(levels, lambda ranks: spectra.energy(ranks) >= asked)
        return levels.ranks(float(levels.values[min(fewest, len(levels.values) - 1)]))
    most = max(len(values) for values in spectra.values.values())
    if goal.rank is not None and goal.rank > most:
        raise ConfigError(
            f"rank {goal.rank} is more than the adapter has: {most} in its largest module",
            expected=f"a rank from 1 to {most}",
            cure="resizing only takes away; a higher rank is trained, not made",
        )
    limit = goal.budget if goal.budget is not None else (goal.rank or 1) * len(spectra.values)
    cost = spectra.parameters if goal.budget is not None else lambda ranks: sum(ranks.values())
    if goal.rank is not None and spread in ("", "uniform"):
        return levels.ranks(float(goal.rank))
    over = _first(levels, lambda ranks: cost(ranks) > limit)
    if over == 0:
        least = levels.ranks(float(levels.values[0]))
        raise ConfigError(
            f"the budget of {limit:,} is less than the {cost(least):,} that rank 1 in every module takes",
            cure=f"ask for at least {cost(least):,}" if spread != "layer" else "spread it over all: --spread all",
        )
    return levels.ranks(float(levels.values[over - 1]))


def resize(adapter: StoredAdapter, ranks: Ranks, dtype: str) -> StoredAdapter:
    """`adapter` cut to these ranks, computed as it is written in `dtype`. The scaling of the setting is kept, and is
    the same in every module."""
    config = config_with_ranks(adapter.config, ranks, adapter.config.scaling)
    return computed(
        adapter,
        config,
        shapes_of(adapter),
        lambda module: svd(Factors.of(adapter, module)).factors(ranks[module]),
        dtype,
    )


def _first(levels: Levels, met: Callable[[Ranks], bool]) -> int:
    """The index of the first level that meets a condition which holds from there on; their number if none does."""
    low, high = 0, len(levels.values)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(levels.ranks(float(levels.values[middle]))) else (middle + 1, high)
    return low
