"""Every setting of a study as a line through all its axes to its loss: parallel coordinates, drawn as plain lines.

Plotly's own kind wants WebGL, which a virtual machine or a printer may not have.
"""

import math
from collections.abc import Sequence
from typing import Any

from lorawise.tuning.report.curves import Figure, figure, loss_range
from lorawise.tuning.report.story import StudyStory, label
from lorawise.tuning.result import in_words, shown


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
