"""Figures over the space of a study: learning rate × scaling, all axes at once, what mattered, the scaling turned.

Where Adam decides the step, runs with equal scaling · lr_B take the same path up to A's own rate (docs/tuning.md): the
heat map draws those lines, so that a valley along them shows that one dial was turned twice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lorawise.report import words
from lorawise.tuning.report.curves import Figure, Trace, figure, log, log_axis, loss_range
from lorawise.tuning.report.importance import Importance
from lorawise.tuning.report.story import RATE, SCALING, StudyStory, label
from lorawise.tuning.result import in_words, shown
from lorawise.tuning.rungs import Interval, paired_interval

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
        **_colours(story),
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
            **_limits(story, "c"),
            "showscale": False,
        },
    }


def _colours(story: StudyStory) -> dict[str, Any]:
    return {"colorscale": LOW_IS_GOOD, **_limits(story, "z"), "showscale": False}


def _limits(story: StudyStory, letter: str) -> dict[str, float]:
    """The palest colour is the base's loss, or the worst one's where all were better."""
    losses = [event.loss for event in story.first.values()]
    ends = loss_range(story)
    high = max(losses) if ends is None or story.base_loss is None else story.base_loss
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


def parallel(story: StudyStory) -> Figure | None:
    """Every setting as a line through all axes to its loss, the best drawn last and strongest."""
    axes = [key for key in story.axes if story.varies(key)]
    if len(axes) < 2 or len(story.first) < 3:
        return None
    cap = story.base_loss if loss_range(story) is not None and story.base_loss is not None else math.inf
    losses = {trial: min(seen.loss, cap) for trial, seen in story.first.items()}
    low, high = min(losses.values()), max(losses.values())
    uprights = [_upright(story, key) for key in axes] + [_loss_upright(low, high)]
    traces = []
    for trial in sorted(losses, key=lambda trial: -losses[trial]):
        share = (losses[trial] - low) / (high - low) if high > low else 0.0
        places = [at[repr(story.value(trial, key))] for key, (at, _) in zip(axes, uprights, strict=False)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(range(len(uprights))),
                "y": [*places, share],
                "line": {
                    "color": f"--ramp:{share:.3f}",
                    "width": 3 if trial == story.leader else 1.5,
                },
                "marker": {"color": f"--ramp:{share:.3f}", "size": 4},
                "name": f"{in_words(story.trials[trial].setting)}<br>{story.first[trial].loss:.4f}",
                "hovertemplate": "%{fullData.name}<extra></extra>",
            }
        )
    capped = sum(seen.loss > cap for seen in story.first.values())
    return figure(
        "parallel",
        "All axes at once",
        traces,
        unit="a line a setting; the stronger its colour, the lower its loss",
        note=f"{capped} settings came out worse than the base and are drawn at its loss." if capped > 1 else "",
        wide=True,
        layout={
            "xaxis": {
                "tickvals": list(range(len(uprights))),
                "ticktext": [*(label(key) for key in axes), "loss"],
                "side": "top",
                "showline": False,
                "range": [-0.25, len(uprights) - 0.6],
            },
            "yaxis": {"visible": False, "range": [-0.06, 1.06]},
            "annotations": [note for x, (_, ticks) in enumerate(uprights) for note in _ticks(x, ticks)],
            "shapes": [_vertical(x) for x in range(len(uprights))],
            "showlegend": False,
            "hovermode": "closest",
        },
    )


Upright = tuple[dict[str, float], list[tuple[float, str]]]  # value → height, and the ticks; heights from 0 to 1


def _upright(story: StudyStory, key: str) -> Upright:
    """Numbers by their logarithm, names evenly."""
    values = story.values(key)
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values)
    places = [math.log(v) for v in values] if numeric else [float(i) for i in range(len(values))]
    heights = [(place - places[0]) / (places[-1] - places[0]) for place in places]
    told = range(len(values)) if len(values) <= 8 else [0, len(values) - 1]
    return (
        {repr(value): height for value, height in zip(values, heights, strict=True)},
        [(heights[i], shown(values[i], key)) for i in told],
    )


def _loss_upright(low: float, high: float) -> Upright:
    return {}, [(share, f"{low + share * (high - low):.3f}") for share in (0.0, 0.5, 1.0)]


def _ticks(x: int, ticks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    common = {"x": x, "xanchor": "left", "xshift": 7, "showarrow": False, "bgcolor": "--card", "borderpad": 1}
    return [common | {"y": height, "text": text, "font": {"size": 11, "color": "--ink"}} for height, text in ticks]


def _vertical(x: int) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": "--line", "width": 2},
        "layer": "below",
    }


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


def turned(story: StudyStory) -> Figure | None:
    """The finished winner with its scaling turned: loss at k · scaling, nothing trained again."""
    rows = {event.factor: np.array(event.row_losses) for event in story.turned}
    if 1.0 not in rows or len(rows) < 3:
        return None
    shown_at = [event for event in story.turned if math.isfinite(event.loss)]
    gaps = {k: paired_interval(rows[k], rows[1.0]) for k in rows}
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [event.factor for event in shown_at],
        "y": [event.loss for event in shown_at],
        "error_y": {
            "type": "data",
            "array": [gaps[e.factor].half if math.isfinite(gaps[e.factor].half) else 0.0 for e in shown_at],
            "thickness": 1,
            "width": 3,
            "color": "--accent",
        },
        "line": {"color": "--accent", "width": 2},
        "marker": {
            "opacity": 1,
            "size": [11 if event.factor == 1 else 7 for event in shown_at],
            "color": ["--second" if event.factor == 1 else "--accent" for event in shown_at],
        },
        "hovertemplate": "× %{x:g}: %{y:.4f}<extra></extra>",
    }
    ticks = [event.factor for event in shown_at if event.factor not in (0.25, 0.75, 1.25)]
    return figure(
        "turned",
        "The winner's scaling, turned after training",
        [trace],
        unit="validation loss at k × its scaling; 0 is the base",
        note=turned_words({e.factor: e.loss for e in shown_at}, gaps),
        layout={"xaxis": {"title": "× scaling", "tickvals": ticks}, "showlegend": False, "hovermode": "closest"},
    )


def turned_words(losses: dict[float, float], gaps: dict[float, Interval]) -> str:
    """What the paired intervals support about turning the scaling."""
    best = min(losses, key=lambda k: losses[k])
    if best == 1.0:
        return "As trained is best. Bars: 95 % of the paired difference to × 1."
    gap = gaps[best]
    how = f"{-gap.mean:.3f} ± {gap.half:.3f} nats"
    said = f"× {best:g} is lower by {how}" if gap.tells else f"× {best:g} cannot be told from as trained ({how} lower)"
    return f"{said}. Bars: 95 % of the paired difference to × 1."
