"""The report's curves as plotly figures in plain data; colours are names that the page's style resolves, light or dark.

A figure is {"id", "title", "traces", "axis"}; `page.js` draws it. Steps run along x, counted from 1.
"""

from collections.abc import Sequence
from typing import Any

from lorawise.report.story import Line, Story

Figure = dict[str, Any]
SMOOTHING = 0.9  # weight of the past in the drawn mean of a noisy curve


def figures(story: Story) -> list[Figure]:
    """Loss first, then what explains it. A figure without a single number is left out."""
    steps = story.steps
    made = [
        _figure("loss", "loss", "nats a token", _losses(story), wide=True),
        _figure("rate", "learning rate", "", [_line(steps, "learning_rate", "learning rate", "accent")]),
        _figure("gradient", "gradient norm", "before clipping", [_line(steps, "gradient_norm", "norm", "accent")]),
        _figure("speed", "tokens a second", "", [_line(steps, "tokens_per_second", "tokens/s", "accent")]),
        _figure("memory", "memory", "GiB, peak so far", [_line(steps, "memory", "memory", "accent", per=2**30)]),
    ]
    return [figure for figure in made if any(any(y is not None for y in t["y"]) for t in figure["traces"])]


def _figure(name: str, title: str, unit: str, traces: Sequence[Line], *, wide: bool = False) -> Figure:
    return {"id": f"curve-{name}", "title": title, "unit": unit, "traces": list(traces), "wide": wide}


def _losses(story: Story) -> list[Line]:
    raw = _line(story.steps, "loss", "train, each step", "faint")
    smooth = raw | {"y": smoothed(raw["y"]), "name": "train", "color": "accent"}
    points = _line(story.validations, "loss", "validation", "second") | {"mode": "lines+markers"}
    traces = [raw, smooth] if len(story.steps) > 20 else [raw | {"name": "train", "color": "accent"}]
    if story.validations:
        traces.append(points)
    if story.base is not None and story.base["loss"] is not None and story.steps:
        ends = [min(line["step"] for line in story.steps), max(line["step"] for line in story.steps)]
        level = {"x": ends, "y": [story.base["loss"]] * 2, "name": "base, validation", "color": "muted", "dash": "dot"}
        traces.append(level | {"mode": "lines"})
    return traces


def _line(lines: Sequence[Line], key: str, name: str, color: str, *, per: float = 1.0) -> Line:
    values = [None if line[key] is None else line[key] / per for line in lines]
    return {"x": [line["step"] for line in lines], "y": values, "name": name, "color": color, "mode": "lines"}


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """An exponential mean without the bias of its start; what is missing stays missing."""
    mean, weight = 0.0, 0.0
    result: list[float | None] = []
    for value in values:
        if value is not None:
            mean = SMOOTHING * mean + (1 - SMOOTHING) * value
            weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(None if value is None else mean / weight)
    return result
