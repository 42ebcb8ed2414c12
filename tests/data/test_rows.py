"""Digests, fingerprints and the two faces of a prompt/completion row."""

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError, DataError
from lorawise.data.rows import Row, RowSet, Source, Where, class_labels, rows_digest

HERE = Where(path="a.jsonl", line=1)


def text(words: str, **fields: object) -> Row:
    return Row(kind="text", where=HERE, text=words, **fields)  # type: ignore[arg-type]


def labelled(label: int | str) -> Row:
    return Row(kind="classification", where=HERE, text="t", label=label)


def test_where_a_row_stood_and_its_weight_are_not_its_content():
    moved = text("a", weight=2.0)
    assert replace(moved, where=Where(path="b", line=9)).digest == text("a").digest


def test_the_digest_tells_content_from_content():
    rows = [
        text("a"),
        text("A"),
        Row(kind="completion", where=HERE, prompt="a", completion="b"),
        Row(kind="completion", where=HERE, prompt="ab", completion=""),
        labelled(1),
        labelled("1"),
        Row(kind="classification", where=HERE, text="t", text_pair="", label=1),
    ]
    assert len({row.digest for row in rows}) == len(rows)


def test_the_order_of_arguments_is_content_since_templates_render_it():
    def call(arguments: dict[str, int]) -> Row:
        turn = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}
        return Row(kind="messages", where=HERE, messages=(turn,), trained_turns=(0,))

    one, other = call({"a": 1, "b": 2}), call({"b": 2, "a": 1})
    assert one.digest != other.digest
    assert one.fingerprint == other.fingerprint


@given(st.text(min_size=1), st.sampled_from([" ", "\n", "\t ", "  "]))
def test_a_fingerprint_ignores_case_and_white_space(words, space):
    assert text(words).fingerprint == text(f" {words.replace(' ', space)}\n").fingerprint
    assert text("abc def").fingerprint == text(f"ABC{space}Def").fingerprint


def test_a_pair_of_strings_and_the_same_two_turns_have_one_fingerprint():
    pair = Row(kind="completion", where=HERE, prompt="Why?\n\n", completion=" Because.")
    turns = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."})
    assert pair.as_messages() == turns
    assert pair.fingerprint == Row(kind="messages", where=HERE, messages=turns, trained_turns=(1,)).fingerprint


def test_indented_code_keeps_its_indentation_as_an_answer():
    row = Row(kind="completion", where=HERE, prompt="def f():\n", completion="    return 1\n")
    assert row.as_messages()[1]["content"] == "    return 1\n"


def test_plain_text_is_no_conversation():
    with pytest.raises(DataError, match="not a conversation"):
        text("a").as_messages()


def test_the_digest_of_a_set_sees_order_weight_and_number():
    a, b = text("a"), text("b")
    sets = [[a, b], [b, a], [a], [a, a], [replace(a, weight=2.0), b]]
    assert len({RowSet(rows=tuple(rows)).digest for rows in sets}) == len(sets)
    assert rows_digest([a, b]) == RowSet(rows=(a, b)).digest


def test_row_sets_survive_pickling():
    rows = RowSet(rows=(text("a"),), skipped={"not-json": 2})
    assert pickle.loads(pickle.dumps(rows)) == rows


def test_class_labels_are_sorted_by_number_or_by_name():
    assert class_labels([labelled(i) for i in (10, 2, 2, 1)]) == (1, 2, 10)
    assert class_labels([labelled(name) for name in ("spam", "ham")]) == ("ham", "spam")


def test_labels_of_two_kinds_or_one_class_are_refused():
    with pytest.raises(DataError, match=r"numbers in some rows \(1\) and names in others \('x'\)"):
        class_labels([labelled(1), labelled("x")])
    with pytest.raises(DataError, match="1 distinct label"):
        class_labels([labelled(1), labelled(1)])


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), True])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    with pytest.raises(ConfigError, match="weight"):
        Source(path="a.jsonl", weight=weight)
