"""report.html: one self-contained page that tells a run, made from the files in its folder and nothing else.

No address outside is fetched: plotly's script is in the page once, and a content policy forbids the rest. Everything
that came from data or files is escaped by the template, and inside the figures' JSON no `<` survives.
"""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from lorawise.base.files import write_text
from lorawise.report import words
from lorawise.report.curves import figures
from lorawise.report.html import plotly_script, rendered, resource, script_json
from lorawise.report.story import Line, Story, read_story

REPORT_NAME = "report.html"
Fact = tuple[str, str]


def write_report(run_folder: Path) -> Path:
    """Make `report.html` in `run_folder` anew; the path of the page. ConfigError when there is no run.yaml."""
    story = read_story(run_folder)
    path = run_folder / REPORT_NAME
    write_text(path, render(story))
    return path


def render(story: Story) -> str:
    drawn = figures(story)
    return rendered(
        resource("page.html.j2"),
        story=story,
        numbers=list(_numbers(story)),
        setting=list(_setting(story)),
        rows=list(_rows(story)),
        figures=drawn,
        figures_json=script_json(drawn),
        preflight=story.facts.get("preflight"),
        findings=story.facts.get("findings", []),
        origin=list(_origin(story)),
        style=Markup(resource("page.css")),
        script=Markup(resource("page.js")),
        plotly=plotly_script() if drawn else "",
    )


def _numbers(story: Story) -> Iterator[Fact]:
    """The row of large numbers under the verdict."""
    best, ended, started = story.best, story.ended, story.facts.get("started", {})
    if best is not None:
        yield "validation loss", words.loss(best["loss"])
        for key, noun in (("exact_match", "exact match"), ("accuracy", "accuracy")):
            if best.get(key) is not None:
                yield noun, words.percent(best[key])
    if story.steps:
        yield "steps", words.count(story.steps[-1]["step"])
    if ended.get("seconds"):
        yield "time", words.duration(ended["seconds"])
    if story.tokens_per_second():
        yield "tokens a second", words.count(story.tokens_per_second() or 0)
    if ended.get("peak_memory"):
        yield "peak memory", words.size(ended["peak_memory"])
    if started.get("trainable_parameters"):
        yield "trained parameters", _share(started["trainable_parameters"], started["total_parameters"])


def _share(trained: int, total: int) -> str:
    return f"{words.count(trained)} ({100 * trained / max(total, 1):.3g} %)"


def _setting(story: Story) -> Iterator[Fact]:
    run, config, started = story.run, story.run.lora_config(), story.facts.get("started", {})
    targets = config.target_modules
    yield "model", run.model
    yield "task", run.task
    yield "r", str(config.r)
    yield "alpha", f"{config.alpha:g}"
    yield "scaling", f"{config.scaling:g}" + (" = alpha / √r (rsLoRA)" if config.rslora else " = alpha / r")
    yield "learning rate", f"{words.rate(run.train.learning_rate)}, {run.train.schedule}, warmup {run.train.warmup:g}"
    yield "target modules", targets if isinstance(targets, str) else ", ".join(targets)
    if config.dropout:
        yield "dropout", f"{config.dropout:g}"
    if run.train.lora_plus_ratio != 1:
        yield "LoRA+ ratio", f"{run.train.lora_plus_ratio:g}"
    batch = f"{run.train.batch_tokens} tokens" if run.train.batch_tokens else f"{run.train.batch_size} rows"
    yield "batch", f"{batch}, rows up to {run.train.max_length} tokens, {'packed' if run.train.packing else 'padded'}"
    yield "base", f"{started.get('dtype', run.base.dtype)} on {started.get('device', 'an unknown device')}"
    yield "data", ", ".join(source.path for source in run.data.train)
    yield "seed", str(run.train.seed)


def _rows(story: Story) -> Iterator[Line]:
    """Base against adapter, with the columns that were measured."""
    for name, line in (("base alone", story.base), ("with the adapter", story.best)):
        if line is not None:
            yield {
                "name": name,
                "loss": words.loss(line["loss"]),
                "perplexity": "–" if line["perplexity"] is None else f"{line['perplexity']:.3f}",
                **{key: words.percent(line[key]) for key in ("exact_match", "accuracy", "f1") if line[key] is not None},
            }


def _origin(story: Story) -> Iterator[Fact]:
    """Where the adapter came from, flattened from its provenance: nested names joined by a space."""
    for section in ("base", "tokenizer", "data", "versions"):
        values = story.provenance.get(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            if value:
                yield f"{section} {name}".replace("_", " "), str(value)
    if story.provenance.get("created"):
        yield "created", str(story.provenance["created"])
