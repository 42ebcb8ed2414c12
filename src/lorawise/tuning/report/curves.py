"""Figures of a study along its steps and beside its axes, as plotly's data; a name like `--accent` is a colour that the
page's style resolves, light or dark.

A figure is {id, title, unit, note, wide, traces, layout}; `study.js` draws it. Losses in nats a token.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorawise.report.curves import smoothed
from lorawise.tuning.report.story import RANK, RATE, SCALING, StudyStory, label
from lorawise.tuning.result import in_words, shown

Figure = dict[str, Any]
Trace = dict[str, Any]
POINTS = 300  # of a drawn curve: more are averaged in equal bins
MOST_TICKS = 8  # values along an axis beyond which they were searched rather than listed
SERIES = ("--accent", "--second", "--good", "--fourth", "--bad", "--muted")


def figure(name: str, title: str, traces: Sequence[Trace], **rest: Any) -> Figure:
    empty = {"unit": "", "note": "", "wide": False, "layout": {}, "choices": [], "series": []}
    return {"id": f"study-{name}", "title": title, "traces": list(traces), **empty, **rest}


def loss_curves(story: StudyStory) -> Figure | None:
    """Every setting's training loss; the page colours them by the axis that is chosen."""
    series = [_series(story, trial) for trial in story.trials]
    series = [each for each in series if each["x"]]
    if not series:
        return None
    choices = [
        {
            "key": key,
            "label": label(key),
            "values": [shown(v, key) for v in story.values(key)],
            "ordered": _ordered(story, key),
        }
        for key in story.axes
        if story.varies(key)
    ]
    choices.append({"key": "outcome", "label": "outcome", "values": list(OUTCOMES), "ordered": False})
    return figure(
        "losses", "Training loss", [], unit="nats a token, smoothed", wide=True, series=series, choices=choices
    )  # fmt: skip


OUTCOMES = ("winner", "finished", "eliminated", "failed", "running")


def _series(story: StudyStory, trial: int) -> Trace:
    steps, losses = [], []
    for event in story.steps:
        if trial in event.trials:
            loss = event.losses[event.trials.index(trial)]
            steps.append(event.step)
            losses.append(loss if math.isfinite(loss) else None)
    state = next(row.state for row in story.rows if row.trial == trial)
    won = story.ended is not None and story.ended.best == trial
    x, y = binned(steps, smoothed(losses))
    return {
        "name": in_words(story.trials[trial].setting),
        "x": x,
        "y": y,
        "values": {key: shown(story.value(trial, key), key) for key in story.axes}
        | {"outcome": "winner" if won else state},
    }


def binned(steps: Sequence[int], losses: Sequence[float | None]) -> tuple[list[int], list[float | None]]:
    """At most `POINTS` points: the last step of each bin and the mean of its losses, missing where one diverged."""
    width = -(-len(steps) // POINTS) if steps else 1
    x, y = [], []
    for first in range(0, len(steps), width):
        bin_ = losses[first : first + width]
        known = [loss for loss in bin_ if loss is not None]
        x.append(steps[min(first + width, len(steps)) - 1])
        y.append(round(math.fsum(known) / len(known), 6) if len(known) == len(bin_) else None)
    return x, y


def timeline(story: StudyStory) -> Figure | None:
    """Validation loss at each comparison: who went on, and who left where."""
    if not story.rungs or story.started is None:
        return None
    traces = [trace for trial in _leader_last(story) if (trace := _life(story, trial)) is not None]
    rungs = [end.step for end in story.rungs]
    line = {
        "type": "line",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "--line", "width": 1},
        "layer": "below",
    }
    places = [log(step) if len(rungs) > 1 else step for step in rungs]
    lines = [line | {"x0": place, "x1": place} for place in places]
    axis = log_axis(rungs, "") if len(rungs) > 1 else {}
    return figure(
        "timeline",
        "Who stayed in",
        traces,
        unit="validation loss at each comparison",
        layout={"xaxis": axis | {"title": "step"}, "shapes": lines, "showlegend": False, "hovermode": "closest"},
    )


def _leader_last(story: StudyStory) -> list[int]:
    return sorted(story.trials, key=lambda trial: trial == story.leader)


def _life(story: StudyStory, trial: int) -> Trace | None:
    seen = [story.measured[rung][trial] for rung in sorted(story.measured) if trial in story.measured[rung]]
    if not seen:
        return None
    stays = trial == story.leader
    out = any(trial in end.eliminated for end in story.rungs)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [log(event.step) if len(story.rungs) > 1 else event.step for event in seen],
        "y": [event.loss for event in seen],
        "name": in_words(story.trials[trial].setting),
        "line": {"color": "--second" if stays else "--faint" if out else "--accent", "width": 3 if stays else 1.5},
        "marker": {
            "symbol": ["circle"] * (len(seen) - 1) + ["x" if out else "circle"],
            "size": 8,
            "color": "--second" if stays else "--muted" if out else "--accent",
        },
        "hovertemplate": "%{fullData.name}<br>%{y:.4f}<extra></extra>",
    }


def against_rate(story: StudyStory) -> Figure | None:
    """Loss against the learning rate, one curve a rank: the best of the other axes at each point."""
    if not story.varies(RATE) or not story.first:
        return None
    by = RANK if story.varies(RANK) else SCALING if story.varies(SCALING) else None
    best: dict[Any, dict[Any, int]] = {}
    for trial, seen in story.first.items():
        at = best.setdefault(story.value(trial, by) if by else None, {})
        place = story.value(trial, RATE)
        if place not in at or seen.loss < story.first[at[place]].loss:
            at[place] = trial
    others = [key for key in story.axes if key not in (RATE, by) and story.varies(key)]
    return _against(story, RATE, by, best, "best of the other axes at each point" if others else "")


def against_scaling(story: StudyStory) -> Figure | None:
    """Loss against the scaling at fixed r; all else as the leader has it."""
    return _slice(story, SCALING, RANK) if story.varies(SCALING) and story.first else None


def against_rank(story: StudyStory) -> Figure | None:
    """Loss against r at fixed scaling: the guide says the scaling keeps one rank's learning rate good for the next."""
    return _slice(story, RANK, SCALING) if story.varies(RANK) and story.first else None


def _slice(story: StudyStory, x: str, by: str) -> Figure:
    """Settings that share everything else with the winner, or with who leads."""
    first = min(story.first.values(), key=lambda e: (e.loss, e.trial)).trial
    best = first if story.leader is None else story.leader
    dials = {x, by, "lora.alpha"} if SCALING in (x, by) else {x, by}
    others = [key for key in story.axes if key not in dials and story.varies(key)]
    curves: dict[Any, dict[Any, int]] = {}
    for trial in story.first:
        if all(story.value(trial, key) == story.value(best, key) for key in others):
            curves.setdefault(story.value(trial, by), {})[story.value(trial, x)] = trial
    same = ", ".join(f"{label(key)} {shown(story.value(best, key), key)}" for key in others)
    return _against(story, x, by if story.varies(by) else None, curves, f"at {same}" if same else "")


def _against(story: StudyStory, x: str, by: str | None, curves: Mapping[Any, Mapping[Any, int]], how: str) -> Figure:
    """`curves` of a grid: value of `by` → place → trial; a search shows all its settings as points."""
    title = f"Loss against {'the ' if x != RANK else ''}{label(x)}"
    if story.is_grid:
        values = sorted(curves, key=lambda value: (value is None, value))
        names = [f"{label(by)} {shown(value, by)}" if by else "" for value in values]
        lines = [[curves[value][place] for place in sorted(curves[value])] for value in values]
        traces = [
            _trace(story, x, trials, name, SERIES[i % len(SERIES)], "lines+markers")
            for i, (name, trials) in enumerate(zip(names, lines, strict=True))
        ]
        title += f", one curve {'a rank' if by == RANK else f'a {label(by)}'}" if by else ""
    else:
        traces, how = [_trace(story, x, list(story.first), "", SERIES[0], "markers")], "a point a setting"
    step = next(iter(story.first.values())).step
    return figure(
        x.partition(".")[2],
        title,
        traces,
        unit=how,
        note=f"Validation loss after step {step}, where every setting was compared. Bars: 95 % of the paired "
        "difference to the best.",
        layout={
            "xaxis": log_axis([story.value(trial, x) for trial in story.first], x) | {"title": label(x)},
            "yaxis": {"range": loss_range(story)},
            "hovermode": "closest",
            "showlegend": len(traces) > 1,
        },
    )


def _trace(story: StudyStory, x: str, trials: Sequence[int], name: str, color: str, mode: str) -> Trace:
    gaps = [story.behind(trial, 1) for trial in trials]
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": [log(story.value(trial, x)) for trial in trials],
        "y": [story.first[trial].loss for trial in trials],
        "text": [in_words(story.trials[trial].setting) for trial in trials],
        "error_y": {
            "type": "data",
            "array": [gap.half if gap is not None and math.isfinite(gap.half) else 0.0 for gap in gaps],
            "thickness": 1,
            "width": 3,
            "color": color,
        },
        "line": {"color": color, "width": 2},
        "marker": {"color": color, "size": 7},
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
    }


def loss_range(story: StudyStory) -> list[float] | None:
    """From the best to the base, with some air: what got worse than the base would flatten all that matters."""
    losses = [event.loss for event in story.first.values()]
    low, high = min(losses), max(losses)
    base = story.base_loss
    if base is None or high <= base or base <= low:
        return None
    return [low - 0.06 * (base - low), base + 0.06 * (base - low)]


def log_axis(values: Sequence[float], key: str) -> dict[str, Any]:
    """Ticks at the values themselves where they are few (positions are logarithms)."""
    distinct = sorted(set(values))
    if len(distinct) > MOST_TICKS:
        low, high = math.log10(distinct[0]), math.log10(distinct[-1])
        distinct = [float(f"{10 ** (low + (high - low) * i / 5):.2g}") for i in range(6)]
    return {"tickvals": [log(v) for v in distinct], "ticktext": [shown(v, key) for v in distinct]}


def log(value: float) -> float:
    return round(math.log10(value), 6)


def _ordered(story: StudyStory, key: str) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in story.values(key))
