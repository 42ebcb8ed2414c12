"""report.html of a study: one self-contained page, made from the files in its folder and nothing else.

The sentence on top, the table, the figures that what was searched allows, what it cost, what the finalists answer. Axes
that were not searched have no figure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from lorawise.base.files import write_text
from lorawise.report import words
from lorawise.report.html import plotly_script, rendered, resource, script_json
from lorawise.tuning.report import curves
from lorawise.tuning.report.importance import importance, importance_bars
from lorawise.tuning.report.maps import heat_map
from lorawise.tuning.report.parallel import parallel
from lorawise.tuning.report.story import StudyStory, label, read_study
from lorawise.tuning.report.turned import turned
from lorawise.tuning.result import Row, in_words, shown

REPORT_NAME = "report.html"
SHOWN = 12  # lines of the table before the rest is folded
HERE = "lorawise.tuning.report"
Fact = tuple[str, str]


def write_report(study_folder: Path) -> Path:
    """Make `report.html` in `study_folder` anew; the path of the page. `ConfigError` when there is no run.yaml."""
    path = study_folder / REPORT_NAME
    write_text(path, render(read_study(study_folder)))
    return path


def render(story: StudyStory) -> str:
    drawn, lines = list(_figures(story)), list(_lines(story))
    first = len(lines) if len(lines) <= SHOWN + 4 else SHOWN
    return rendered(
        resource("study.html.j2", HERE),
        story=story,
        numbers=list(_numbers(story)),
        columns=[label(key) for key in story.axes],
        top=lines[:first],
        rest=lines[first:],
        costs=list(_costs(story)),
        setting=list(_setting(story)),
        answers=story.answers(),
        figures=drawn,
        figures_json=script_json(drawn),
        style=Markup(resource("page.css") + resource("study.css", HERE)),
        script=Markup(resource("study.js", HERE)),
        plotly=plotly_script() if drawn else "",
    )


def _figures(story: StudyStory) -> Iterator[curves.Figure]:
    made = (
        curves.loss_curves(story),
        curves.against_rate(story),
        heat_map(story),
        curves.against_scaling(story),
        curves.against_rank(story),
        parallel(story),
        importance_bars(importance(story)),
        curves.timeline(story),
        turned(story),
    )
    yield from _rows_filled([figure for figure in made if figure is not None])


def _rows_filled(figures: list[curves.Figure]) -> Iterator[curves.Figure]:
    """Two narrow figures share a row; one that would stand alone takes it whole."""
    alone = False
    for number, figure in enumerate(figures):
        narrow = not figure["wide"]
        left = narrow and not alone
        alone = left
        last = number + 1 == len(figures) or figures[number + 1]["wide"]
        yield figure | {"wide": True} if left and last else figure


def _numbers(story: StudyStory) -> Iterator[Fact]:
    """The row of large numbers under the sentence."""
    best = next((row for row in story.rows if row.trial == story.leader), None)
    if best is not None and best.validation_loss is not None:
        yield "validation loss", words.loss(best.validation_loss)
        if story.base_loss is not None:
            yield "the base's", words.loss(story.base_loss)
    if story.started is not None:
        yield "settings", words.count(story.started.trials)
    if story.rungs:
        yield "compared after steps", ", ".join(str(end.step) for end in story.rungs)
    if story.rungs:
        yield "time", words.duration(sum(end.seconds for end in story.rungs))
    if story.steps:
        yield "cost", f"{_spent(story):.2f} runs"


def _spent(story: StudyStory) -> float:
    """Full-run equivalents so far."""
    assert story.started is not None, "there are steps"
    return sum(len(event.trials) for event in story.steps) / story.started.rungs[-1]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table as text; `share` of the whole run that the setting took part in, from 0 to 1."""

    place: int
    values: tuple[str, ...]
    state: str
    step: int
    share: float
    loss: str
    behind: str
    own: bool


def _lines(story: StudyStory) -> Iterator[Line]:
    total = story.started.rungs[-1] if story.started is not None else 1
    origins = {trial: asked.origin for trial, asked in story.trials.items()}
    reached = {trial: event.step for event in story.steps for trial in event.trials}
    for place, row in enumerate(story.rows, start=1):
        equal = row.equal_to is not None
        step = row.step if row.state == "failed" else max(row.step, reached.get(row.trial, 0))
        yield Line(
            place=place,
            values=tuple(shown(row.setting[key], key) for key in story.axes),
            state=_state(story, row),
            step=step,
            share=0.0 if equal else step / total,
            loss="" if row.validation_loss is None else words.loss(row.validation_loss),
            behind="" if equal else _behind(story, row.trial),
            own=origins.get(row.trial) == "the run file",
        )


def _state(story: StudyStory, row: Row) -> str:
    if row.equal_to is not None:
        return f"same run as {in_words(story.trials[row.equal_to].setting)}"
    if row.state == "failed":
        return f"failed: {story.failed[row.trial].reason}"
    if story.ended is None:
        return "still in" if row.state == "running" else row.state
    return "winner" if row.trial == story.ended.best else row.state


def _behind(story: StudyStory, trial: int) -> str:
    rungs = [rung for rung, rows in story.measured.items() if trial in rows]
    if not rungs:
        return ""
    gap = story.behind(trial, max(rungs))
    return "leads" if gap is None else str(gap)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`share` of the longest bar."""

    name: str
    text: str
    share: float
    strong: bool


def _costs(story: StudyStory) -> Iterator[Cost]:
    """This study beside one whole run and beside every setting run whole, in steps trained."""
    if story.started is None or not story.rungs:
        return
    spent, whole = _spent(story), float(len(story.trials))
    longest = max(spent, whole, 1.0)
    for name, runs, strong in (
        ("one run", 1.0, False),
        ("this study", spent, True),
        ("every setting to the end", whole, False),
    ):
        yield Cost(name=name, text=f"{runs:.2f}", share=runs / longest, strong=strong)


def _measuring(story: StudyStory) -> str:
    """How long the rungs took, and how much of the work was evaluation; packs on several machines overlap."""
    evaluation = sum(end.evaluation_seconds for end in story.rungs)
    worked = evaluation + sum(event.seconds for event in story.steps)
    share = words.percent(evaluation / worked if worked else None)
    return f"{words.duration(sum(end.seconds for end in story.rungs))}; {share} of the work was on validation rows"


def _setting(story: StudyStory) -> Iterator[Fact]:
    """What all settings share."""
    run, started, options = story.run, story.started, story.asked.get("options", {})
    yield "model", run.model
    yield "task", run.task
    for name in ("r", "scaling"):
        if not story.varies(f"lora.{name}") if story.trials else False:
            yield name, shown(story.values(f"lora.{name}")[0])
    if started is not None:
        yield "rows", f"{words.count(started.rows)} to train, {words.count(started.validation_rows)} to compare on"
        yield "side by side", f"{started.slots} at most"
        yield "sampler", started.sampler if options.get("trials") else "none: every combination"
        yield "elimination", started.eliminate
    yield "schedule", f"held until the last comparison but one, then {run.train.schedule}"
    yield "data", ", ".join(source.path for source in run.data.train)
    yield "seeds", f"{run.train.seed} of the run, {options.get('seed', 0)} of the sampler"
    if story.rungs:
        yield "time", _measuring(story)
