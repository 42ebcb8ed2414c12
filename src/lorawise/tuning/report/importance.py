"""How much each axis mattered for the loss at the first comparison, where every setting took part.

A whole grid: exact functional ANOVA, the share of the variance that an axis explains by itself,

    share(axis) = Var over its values of (mean loss at that value) / Var of all losses         (Hutter et al. 2014)

and what is left is the axes' joint effect. Otherwise Optuna's PED-ANOVA (Watanabe et al. 2023, 2304.10255), over the
better tenth of the settings. Losses above the base's count as the base's: how badly a setting failed says nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.report import words
from lorawise.tuning.report.curves import Figure, figure
from lorawise.tuning.report.story import StudyStory, label

FEWEST = 10  # settings below which a search says nothing about importance


@dataclass(frozen=True, kw_only=True)
class Importance:
    """`shares` axis → share of 1, the largest first; `joint` what no axis explains alone; `method` in words."""

    shares: dict[str, float]
    joint: float | None
    method: str


def importance(story: StudyStory) -> Importance | None:
    """None where nothing can be told: one axis, no comparison yet, or too few settings."""
    axes = [key for key in story.axes if story.varies(key)] if story.trials else []
    losses = {trial: _capped(seen.loss, story.base_loss) for trial, seen in story.first.items()}
    if len(axes) < 2 or len(losses) < 3:
        return None
    levels = [story.values(key) for key in axes]
    if len(story.trials) == len(losses) == int(np.prod([len(each) for each in levels])):
        cells = np.empty([len(each) for each in levels])
        for trial, loss in losses.items():
            cells[tuple(each.index(story.value(trial, key)) for key, each in zip(axes, levels, strict=True))] = loss
        return of_grid(axes, cells)
    return _of_search(story, axes, losses)


def of_grid(axes: list[str], cells: NDArray[np.float64]) -> Importance | None:
    """Main effects of a full factorial, one dimension of `cells` an axis; None where all cells are equal."""
    variance = float(cells.var())
    if variance < 1e-18:
        return None
    shares = {}
    for i, key in enumerate(axes):
        others = tuple(j for j in range(cells.ndim) if j != i)
        shares[key] = float(cells.mean(axis=others).var()) / variance
    return Importance(
        shares=_ordered(shares),
        joint=max(0.0, 1.0 - sum(shares.values())),
        method="exact functional ANOVA of the whole grid",
    )


def _of_search(story: StudyStory, axes: list[str], losses: dict[int, float]) -> Importance | None:
    try:
        import optuna
    except ImportError:
        return None
    if len(losses) < FEWEST or len(set(losses.values())) < 2:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    spaces = {key: _distribution(story.values(key)) for key in axes}
    for trial, loss in losses.items():
        params = {key: _place(story.value(trial, key), spaces[key], story.values(key)) for key in axes}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=loss))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return Importance(shares=_ordered(dict(found)), joint=None, method="Optuna's PED-ANOVA over the better tenth")


def _distribution(values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values) and len(values) > 4:
        return FloatDistribution(float(values[0]), float(values[-1]), log=True)
    return CategoricalDistribution(list(range(len(values))))


def _place(value: Any, space: Any, values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution

    return values.index(value) if isinstance(space, CategoricalDistribution) else float(value)


def _capped(loss: float, base: float | None) -> float:
    return loss if base is None else min(loss, base)


def _ordered(shares: dict[str, float]) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def importance_bars(found: Importance | None) -> Figure | None:
    if found is None:
        return None
    shares = {label(key): share for key, share in found.shares.items()}
    if found.joint is not None:
        shares["together"] = found.joint
    names = list(shares)[::-1]
    return figure(
        "importance",
        "What mattered",
        [
            {
                "type": "bar",
                "orientation": "h",
                "x": [100 * shares[name] for name in names],
                "y": names,
                "text": [words.percent(shares[name]) for name in names],
                "textposition": "outside",
                "cliponaxis": False,
                "marker": {"color": ["--faint" if name == "together" else "--accent" for name in names]},
                "hoverinfo": "skip",
            }
        ],
        unit="share of the loss's variance" if found.joint is not None else "relative importance",
        note=f"By {found.method}, at the first comparison; losses above the base's count as the base's.",
        layout={
            "xaxis": {"ticksuffix": " %", "range": [0, 115 * max(shares.values())], "title": ""},
            "yaxis": {"ticksuffix": "  ", "nticks": len(names)},
            "showlegend": False,
        },
    )
