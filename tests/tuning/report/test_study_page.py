"""A study's report.html: made from files alone, only of what the study has, nothing taken as markup."""

import json
import math
import re
from pathlib import Path

import pytest
from tests.tuning.small_study import small_study

from lorawise.base.errors import ConfigError
from lorawise.tuning.events import PackStepped, RungEnded, StudyEnded, TrialAsked, TrialMeasured
from lorawise.tuning.report.curves import POINTS, binned, loss_curves
from lorawise.tuning.report.page import render, write_report
from lorawise.tuning.report.story import read_study
from lorawise.tuning.report.turned import turned_words
from lorawise.tuning.rungs import Interval


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("page")
    over = ("lora.r=2,8", "lora.scaling=0.5,2,8", "train.learning_rate=1e-3,1e-2")
    return small_study(work, work / "study", over=over).study


def body(page: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def figures_of(page: str) -> dict[str, dict]:
    held = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, flags=re.DOTALL)
    assert held is not None
    return {figure["id"].removeprefix("study-"): figure for figure in json.loads(held[1])}


def test_the_page_holds_the_sentence_the_table_and_every_figure(study):
    page = (study / "report.html").read_text(encoding="utf-8")
    story = read_study(study)
    assert story.ended is not None
    assert story.ended.sentence in body(page).lower().replace("&#39;", "'")
    assert list(figures_of(page)) == [
        "losses",
        "learning_rate",
        "heat",
        "scaling",
        "r",
        "parallel",
        "importance",
        "timeline",
        "turned",
    ]
    assert body(page).count("eliminated") >= 8
    assert "What the finalists answer" in page


def test_the_figures_hold_what_was_measured(study):
    figures, story = figures_of((study / "report.html").read_text(encoding="utf-8")), read_study(study)
    losses = {trial: seen.loss for trial, seen in story.first.items()}
    heat = figures["heat"]["traces"][0]
    assert (len(heat["z"]), len(heat["z"][0])) == (3, 2)
    assert min(min(row) for row in heat["z"]) == min(losses.values())
    rate = figures["learning_rate"]["traces"]
    assert [trace["name"] for trace in rate] == ["r 2", "r 8"]
    for trace, r in zip(rate, (2, 8), strict=True):
        for x, y in zip(trace["x"], trace["y"], strict=True):
            at = [
                loss
                for trial, loss in losses.items()
                if story.value(trial, "lora.r") == r
                and math.isclose(math.log10(story.value(trial, "train.learning_rate")), x, abs_tol=1e-5)
            ]
            assert y == min(at)
    assert sum(len(trace["x"]) for trace in figures["scaling"]["traces"]) == 6, "at the leader's rate: r × scaling"
    assert [e.loss for e in story.turned] == figures["turned"]["traces"][0]["y"]
    assert len(figures["losses"]["series"]) == 12


def test_lines_of_equal_strength_have_equal_products(study):
    for trace in figures_of((study / "report.html").read_text(encoding="utf-8"))["heat"]["traces"][1:]:
        sums = [x + y for x, y in zip(trace["x"], trace["y"], strict=True)]
        assert sums[0] == pytest.approx(sums[1])


def test_the_curves_can_be_coloured_by_every_axis_and_by_the_outcome(study):
    figure = loss_curves(read_study(study))
    assert figure is not None
    assert [choice["key"] for choice in figure["choices"]] == [
        "lora.r",
        "lora.scaling",
        "train.learning_rate",
        "outcome",
    ]
    for choice in figure["choices"]:
        assert {each["values"][choice["key"]] for each in figure["series"]} <= set(choice["values"])


def test_axes_that_were_not_searched_have_no_figure(tmp_path):
    found = small_study(tmp_path, tmp_path / "study", over=("train.learning_rate=1e-3,1e-2",))
    assert list(figures_of((found.study / "report.html").read_text(encoding="utf-8"))) == [
        "losses",
        "learning_rate",
        "timeline",
        "turned",
    ]


def test_a_search_over_ranges_and_names_has_a_page(tmp_path):
    targets = "lora.target_modules=qv,[q_proj,down_proj]"
    over = ("train.learning_rate=1e-4..2e-2 log", "lora.scaling=1..8", targets)
    found = small_study(tmp_path, tmp_path / "study", over=over, trials=12, sampler="random")
    page = (found.study / "report.html").read_text(encoding="utf-8")
    figures = figures_of(page)
    assert "<td>q_proj+down_proj</td>" in page
    assert {"learning_rate", "heat", "scaling", "parallel", "importance"} <= set(figures)
    assert "PED-ANOVA" in figures["importance"]["note"]
    assert [trace["mode"] for trace in figures["scaling"]["traces"]] == ["markers"]


@pytest.mark.parametrize("after", [StudyEnded, RungEnded, TrialMeasured, PackStepped, TrialAsked])
def test_a_study_cut_short_anywhere_has_a_page_that_says_so(study, tmp_path, after):
    lines = (study / "events.jsonl").read_text().splitlines()
    kinds = {
        StudyEnded: "ended",
        RungEnded: "rung",
        TrialMeasured: "measured",
        PackStepped: "step",
        TrialAsked: "trial",
    }
    first = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == kinds[after])
    for keep in (first, first + 1):
        (tmp_path / "run.yaml").write_text((study / "run.yaml").read_text())
        (tmp_path / "events.jsonl").write_text("\n".join(lines[:keep]) + "\n")
        text = body(write_report(tmp_path).read_text(encoding="utf-8"))
        assert ("--resume" in text) == (after is not StudyEnded or keep == first)


def test_a_study_with_settings_that_diverged_has_a_page(tmp_path):
    over = ("lora.scaling=1,2", "train.learning_rate=1e-3,1e+30")
    found = small_study(tmp_path, tmp_path / "study", over=over)
    page = (found.study / "report.html").read_text(encoding="utf-8")
    assert body(page).count("failed: the ") == 2
    assert "importance" not in figures_of(page)
    assert "A cell without a number diverged." in page


def test_the_page_fetches_nothing_and_takes_nothing_as_markup(study):
    story = read_study(study)
    asked = [e for e in story.events if isinstance(e, TrialAsked)]
    evil = {"lora.target_modules": "<script>alert(1)</script>"}
    events = [
        TrialAsked(trial=e.trial, setting={**e.setting, **evil}, full=e.full, origin=e.origin)
        if isinstance(e, TrialAsked)
        else e
        for e in story.events
    ]
    assert asked
    page = render(type(story)(**{**vars_of(story), "events": tuple(events), "run_text": "</pre><i>"}))
    assert "<script>alert" not in page
    assert "</pre><i>" not in page
    assert not re.search(r"https?://|<link|<img|src=|@import", body(page))
    assert page.count("plotly.js v") == 1


def vars_of(story) -> dict:
    return {name: getattr(story, name) for name in ("folder", "run", "run_text", "asked", "events")}


def test_the_page_is_made_again_when_an_ended_study_is_resumed(tmp_path):
    found = small_study(tmp_path, tmp_path / "study", over=("lora.scaling=1,2",))
    before = (found.study / "report.html").read_bytes()
    (found.study / "report.html").unlink()
    small_study(tmp_path, tmp_path / "study", over=("lora.scaling=1,2",), resume=True)
    assert (found.study / "report.html").read_bytes() == before


def test_a_folder_without_a_run_file_has_no_report(tmp_path):
    with pytest.raises(ConfigError, match="no run file"):
        write_report(tmp_path)


def test_long_curves_are_averaged_in_bins_and_keep_their_gaps():
    steps = list(range(1, 10 * POINTS + 1))
    x, y = binned(steps, [float(step) for step in steps])
    assert len(x) <= POINTS
    assert x[-1] == steps[-1]
    assert y[0] == pytest.approx(5.5)
    assert binned([1, 2], [1.0, None]) == ([1, 2], [1.0, None])


def test_turning_claims_only_what_the_interval_supports():
    losses = {0.0: 3.0, 1.0: 2.0, 1.5: 1.9}
    gaps = {k: Interval(mean=losses[k] - 2.0, half=0.05, rows=30) for k in losses}
    assert turned_words(losses, gaps).startswith("× 1.5 is lower by 0.100 ± 0.050 nats")
    wide = {k: Interval(mean=losses[k] - 2.0, half=0.2, rows=30) for k in losses}
    assert "cannot be told" in turned_words(losses, wide)
    assert turned_words({0.0: 3.0, 1.0: 1.0}, gaps).startswith("As trained is best")
