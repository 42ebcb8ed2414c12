"""report.html: from files alone, self-contained, nothing from data taken as markup."""

import json
import re
from pathlib import Path

import pytest
from tests.report.pretend_run import step_done, whole_run

from lorawise.base.errors import ConfigError
from lorawise.report.curves import figures, smoothed
from lorawise.report.facts import FactsFile
from lorawise.report.html import script_json
from lorawise.report.metrics import MetricsFile
from lorawise.report.page import write_report
from lorawise.report.story import read_story
from lorawise.runfile import make_run_file


def run_folder(folder: Path, *, readers: bool = True) -> Path:
    folder.mkdir(parents=True)
    run, _ = make_run_file(
        {"model": "user/<i>model</i>", "data": {"train": "user/rows"}, "lora": {"r": 8, "alpha": 16}}
    )
    (folder / "run.yaml").write_text(run.to_yaml(), encoding="utf-8")
    (folder / "adapter").mkdir()
    record = {"base": {"source": "user/model", "digest": "ab" * 32}, "created": "2026-11-24"}
    (folder / "adapter" / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    if readers:
        for reader in (MetricsFile(folder / "metrics.jsonl"), FactsFile(folder / "facts.json")):
            for event in whole_run(folder):
                reader(event)
            reader.close()
    return folder


def body(page: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def test_the_page_tells_the_run(tmp_path: Path) -> None:
    text = body(write_report(run_folder(tmp_path / "first")).read_text(encoding="utf-8"))
    for told in (
        "Validation loss fell from 2.3100 to 0.1637, exact match went from 0.0 % to 95.0 %.",
        "2 = alpha / r",
        "2e-4, cosine",
        "2 rows were cut at 512 tokens",
        "every B gets a gradient",
        "117 tokens lost",
        "ab" * 32,
    ):
        assert told in text
    assert "<mark>{&#34;order&#34;: 4411" in text


def test_nothing_from_data_or_files_is_taken_as_markup(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "first")).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "<i>model" not in page
    assert "\x1b" not in body(page)


def test_the_page_fetches_nothing_from_outside(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "first")).read_text(encoding="utf-8")
    assert not re.search(r"https?://|<link|<img|src=|@import", body(page))
    assert not re.search(r"<script[^>]+src=", page)
    assert "default-src 'none'" in page
    assert page.count("plotly.js v") == 1


def test_the_page_is_made_again_from_the_folder_after_it_moved(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "first")
    before = write_report(folder).read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    moved = folder.rename(tmp_path / "elsewhere")
    assert write_report(moved).read_text(encoding="utf-8") == before.replace(">first<", ">elsewhere<").replace(
        "<title>first ", "<title>elsewhere "
    )


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    text = write_report(run_folder(tmp_path / "first", readers=False)).read_text(encoding="utf-8")
    assert "No validation rows were measured" in text
    assert "The run has not ended yet." in text
    assert "plotly.js v" not in text


def test_a_run_that_diverged_says_so_first(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "first", readers=False)
    reader = MetricsFile(folder / "metrics.jsonl")
    reader(step_done(1, 2.0))
    reader(step_done(2, float("nan")))
    reader.close()
    assert read_story(folder).verdict().startswith("The loss diverged")
    assert write_report(folder).is_file()


def test_a_folder_without_a_run_file_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run file"):
        write_report(tmp_path)


def test_curves_hold_every_step_and_the_level_of_the_base(tmp_path: Path) -> None:
    made = {figure["id"]: figure for figure in figures(read_story(run_folder(tmp_path / "first")))}
    assert list(made) == ["curve-loss", "curve-rate", "curve-gradient", "curve-speed", "curve-memory"]
    names = {trace["name"]: trace for trace in made["curve-loss"]["traces"]}
    assert names["train"]["x"] == list(range(1, 151))
    assert names["validation"]["x"] == [50, 100, 150]
    assert set(names["base, validation"]["y"]) == {2.31}


def test_a_smoothed_curve_starts_at_its_first_value_and_keeps_gaps() -> None:
    assert smoothed([3.0, 3.0, None, 3.0]) == pytest.approx([3.0, 3.0, None, 3.0])
    assert smoothed([0.0, 1.0])[1] == pytest.approx(0.1 / 0.19)


def test_json_inside_a_script_element_cannot_end_it() -> None:
    text = script_json({"name": "</script><script>alert(1)</script>"})
    assert "<" not in text
    assert json.loads(text)["name"].startswith("</script>")
