"""Rows seen through a local base's tokenizer: masks, ends and cuts are counted, not guessed."""

import json
from pathlib import Path

import pytest
from tests.workbench import byte_tokenizer, rows_of, write_rows

from lorawise import check


def chats(count: int, *, asked: str, answer: str) -> list[dict[str, object]]:
    return [
        {"messages": [{"role": "user", "content": f"{i} {asked}"}, {"role": "assistant", "content": f"{answer} {i}"}]}
        for i in range(count)
    ]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    byte_tokenizer(tmp_path / "base")
    (tmp_path / "run.yaml").write_text(
        "model: base\ndata: {train: rows.jsonl, validation: 0.4}\ntrain: {max_length: 96}\n", encoding="utf-8"
    )
    return tmp_path


def codes(home: Path, rows: list[dict[str, object]]) -> dict[str, str]:
    write_rows(home / "rows.jsonl", rows)
    return {finding.code: finding.level for finding in check(home / "run.yaml").findings}


def test_rows_that_fit_raise_nothing_but_what_is_said_of_any(home: Path) -> None:
    assert codes(home, rows_of(120)) == {}


def test_a_prompt_that_fills_the_length_leaves_nothing_to_train(home: Path) -> None:
    rows = rows_of(110) + chats(3, asked="x" * 200, answer="yes")
    found = codes(home, rows)
    assert found["LW302"] == "error"
    assert "LW303" not in found


def test_answers_that_are_all_cut_never_train_their_end(home: Path) -> None:
    found = codes(home, chats(110, asked="why", answer="because " * 40))
    assert found["LW303"] == "error"
    assert found["LW307"] == "warning"
    assert "LW302" not in found


def test_a_row_that_is_no_conversation_is_counted_once(home: Path) -> None:
    write_rows(home / "rows.jsonl", rows_of(110))
    with (home / "rows.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps({"messages": "hello"}) + "\n")
    findings = [f for f in check(home / "run.yaml").findings if f.code == "LW313"]
    assert [f.line for f in findings] == [111]
