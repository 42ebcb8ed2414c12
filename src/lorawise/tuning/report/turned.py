"""The finished winner with its scaling turned up and down: what was measured, and what the intervals say of it."""

import math

import numpy as np

from lorawise.tuning.report.curves import Figure, figure
from lorawise.tuning.report.story import StudyStory
from lorawise.tuning.rungs import Interval, paired_interval


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
