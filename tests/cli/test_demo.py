"""The demo command: on a tiny model that learns a tiny job, and (slow) as `make demo` runs it."""

import json
from pathlib import Path

import pytest
from tests.workbench import rows_of, tiny_folder, write_rows

from lorawise.base.errors import ModelError
from lorawise.cli.app import run
from lorawise.models.embedded import embedded_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with another base, other rows and a shorter run; its folder."""
    base = tiny_folder(tmp_path / "base")
    for part, count, first in (("train", 24, 0), ("validation", 4, 24), ("test", 4, 100)):
        write_rows(tmp_path / f"{part}.jsonl", rows_of(count, first=first))
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lorawise.models.embedded.embedded_model", lambda: base)
    monkeypatch.setattr("lorawise.models.files.EMBEDDED", str(base))
    monkeypatch.setattr("lorawise.cli.demo.SUPPORT", tmp_path)
    train = {"steps": 6, "batch_size": 8, "max_length": 128, "learning_rate": 1e-2, "save_every": 2}
    monkeypatch.setattr("lorawise.cli.demo.RUN", {"lora": {"r": 4}, "train": train})
    return tmp_path / "demo"


def test_the_demo_shows_base_and_adapter_and_the_second_time_what_is_there(tiny: Path, capsys: Capture) -> None:
    assert run(["demo", "-o", str(tiny)]) == 0
    first = capsys.readouterr()
    table = [line.split()[0] for line in first.out.splitlines() if line.strip()]
    assert table == ["loss", "base", "adapter", "message", "base", "adapter", "wanted"]
    assert f"lorawise chat {tiny.parent / 'base'} --adapter demo={tiny / 'adapter'}" in first.err
    adapter = (tiny / "adapter" / "adapter_model.safetensors").read_bytes()

    assert run(["demo", "-o", str(tiny)]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "finished at step 6" in second.err
    assert "answering" not in second.err
    assert (tiny / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_the_demo_under_json_holds_the_run_and_the_test(tiny: Path, capsys: Capture) -> None:
    assert run(["demo", "-o", str(tiny), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 6
    assert [row["name"] for row in told["test"]] == ["base", "adapter"]
    assert told["test"][1]["loss"] < told["test"][0]["loss"]


def test_a_folder_with_another_run_is_left_alone(tiny: Path, capsys: Capture) -> None:
    tiny.mkdir()
    (tiny / "run.yaml").write_text("model: user/other\ndata: {train: user/rows}\n", encoding="utf-8")
    assert run(["demo", "-o", str(tiny), "--json"]) == 2
    assert "not the demo" in json.loads(capsys.readouterr().out)["error"]["found"]


@pytest.mark.parametrize("content", ["{", "[]", '{"adapter": "other"}'])
def test_answers_that_were_not_kept_whole_are_given_again(content: str, tiny: Path, capsys: Capture) -> None:
    assert run(["demo", "-o", str(tiny)]) == 0
    (tiny / "test.json").write_text(content, encoding="utf-8")
    first = capsys.readouterr()
    assert run(["demo", "-o", str(tiny)]) == 0
    assert capsys.readouterr().out == first.out


@pytest.mark.slow
@pytest.mark.real_model
def test_the_demo_learns_its_job(tmp_path: Path, capsys: Capture) -> None:
    try:
        embedded_model()
    except ModelError as problem:
        pytest.skip(f"the embedded model cannot be fetched here: {problem.found}")
    assert run(["demo", "-o", str(tmp_path / "demo"), "--json"]) == 0
    base, adapter = json.loads(capsys.readouterr().out)["test"]
    assert base["exact_match"] <= 0.05
    assert adapter["exact_match"] >= 0.9
