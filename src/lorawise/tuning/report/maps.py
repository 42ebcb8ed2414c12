"""The map of a study over learning rate and scaling.

Where Adam decides the step, runs with equal scaling · lr_B take the same path up to A's own rate (docs/tuning.md): the
heat map draws those lines, so that a valley along them shows that one dial was turned twice.
"""

import math
from collections.abc import Collection, Sequence

from lorawise.tuning.report.curves import Figure, Trace, figure, log, log_axis
from lorawise.tuning.report.story import RATE, SCALING, StudyStory
from lorawise.tuning.result import in_words

RATIO = "train.lora_plus_ratio"
MOST_LINES = 12
LOW_IS_GOOD = [[0.0, "--deep"], [0.5, "--middle"], [1.0, "--pale"]]


def heat_map(story: StudyStory) -> Figure | None:
    """The best loss at each learning rate and scaling, with lines of equal scaling · lr_B."""
    if not (story.varies(RATE) and story.varies(SCALING)) or not story.first:
        return None
    best: dict[tuple[float, float], int] = {}
    for trial, seen in story.first.items():
        place = (story.value(trial, RATE), story.value(trial, SCALING))
        if place not in best or seen.loss < story.first[best[place]].loss:
            best[place] = trial
    rates, scalings = story.values(RATE), story.values(SCALING)
    whole = 2 * len(best) >= len(rates) * len(scalings)
    heat = _cells(story, best, rates, scalings) if whole else _dots(story, best)
    lines = [] if RATIO in story.axes else _equal_lines(rates, scalings)
    ratio = story.run.train.lora_plus_ratio
    strength = "scaling · lr" if ratio == 1 else f"scaling · lr · {ratio:g}"
    return figure(
        "heat",
        "Learning rate × scaling",
        [heat, *lines],
        unit="validation loss; dotted: equal " + strength if lines else "validation loss",
        note=_of_map(story, diverged=whole and len(best) < len(rates) * len(scalings)),
        layout={
            "xaxis": log_axis(rates, RATE) | {"title": "learning rate", "range": _ends(rates)},
            "yaxis": log_axis(scalings, SCALING) | {"title": "scaling", "range": _ends(scalings)},
            "showlegend": False,
            "hovermode": "closest",
        },
    )


def _of_map(story: StudyStory, *, diverged: bool) -> str:
    others = [key for key in story.axes if key not in (RATE, SCALING) and story.varies(key)]
    said = "Each cell is the best of the other axes. " if others else ""
    said += "Along a dotted line B moves the output as fast early in the run."
    return said + (" A cell without a number diverged." if diverged else "")


def _cells(
    story: StudyStory, best: dict[tuple[float, float], int], rates: Sequence[float], scalings: Sequence[float]
) -> Trace:
    losses = [[_loss(story, best.get((rate, scaling))) for rate in rates] for scaling in scalings]
    return {
        "type": "heatmap",
        "x": [log(rate) for rate in rates],
        "y": [log(scaling) for scaling in scalings],
        "z": losses,
        "text": [["" if z is None else f"{z:.3f}" for z in row] for row in losses],
        "texttemplate": "%{text}",
        "customdata": [[_words(story, best.get((rate, scaling))) for rate in rates] for scaling in scalings],
        "hovertemplate": "%{customdata}<br>%{z:.4f}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
        "colorscale": LOW_IS_GOOD,
        "showscale": False,
        **_limits(story, best.values(), "z"),
    }


def _dots(story: StudyStory, best: dict[tuple[float, float], int]) -> Trace:
    losses = [story.first[trial].loss for trial in best.values()]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [log(rate) for rate, _ in best],
        "y": [log(scaling) for _, scaling in best],
        "text": [f"{in_words(story.trials[t].setting)}<br>{story.first[t].loss:.4f}" for t in best.values()],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": 15,
            "color": losses,
            "line": {"color": "--line", "width": 1},
            "colorscale": LOW_IS_GOOD,
            **_limits(story, best.values(), "c"),
            "showscale": False,
        },
    }


def _limits(story: StudyStory, best: Collection[int], letter: str) -> dict[str, float]:
    """From the best to the worst that is shown, or to the base's loss where some came out above it."""
    losses = [story.first[trial].loss for trial in best]
    high = max(losses) if story.base_loss is None else min(max(losses), max(story.base_loss, min(losses)))
    return {f"{letter}min": min(losses), f"{letter}max": max(high, min(losses) + 1e-9)}


def _equal_lines(rates: Sequence[float], scalings: Sequence[float]) -> list[Trace]:
    """scaling · lr = c is a straight line of slope −1 here. Through the corners of the map, evenly between."""
    low, high = math.log10(rates[0] * scalings[0]), math.log10(rates[-1] * scalings[-1])
    count = min(MOST_LINES, max(3, round((high - low) / math.log10(2))))
    (left, right), (bottom, top) = _ends(rates), _ends(scalings)
    lines = []
    for i in range(1, count):
        level = low + (high - low) * i / count
        x0, x1 = max(left, level - top), min(right, level - bottom)
        if x0 < x1:
            lines.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [x0, x1],
                    "y": [level - x0, level - x1],
                    "line": {"color": "--ink", "width": 1, "dash": "dot"},
                    "opacity": 0.45,
                    "hoverinfo": "skip",
                }
            )
    return lines


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Half a cell beyond the outermost values, as logarithms."""
    logs = [math.log10(v) for v in values]
    air = 0.05 * (logs[-1] - logs[0])
    return logs[0] - max(air, (logs[1] - logs[0]) / 2), logs[-1] + max(air, (logs[-1] - logs[-2]) / 2)


def _loss(story: StudyStory, trial: int | None) -> float | None:
    return None if trial is None else story.first[trial].loss


def _words(story: StudyStory, trial: int | None) -> str:
    return "" if trial is None else in_words(story.trials[trial].setting)
