"""Answers side by side, whatever the width."""

from hypothesis import given
from hypothesis import strategies as st

from lorawise.report.columns import THINNEST, side_by_side


@given(st.dictionaries(st.text("abc", min_size=1, max_size=8), st.text(max_size=200), min_size=1, max_size=4),
       st.integers(30, 160))  # fmt: skip
def test_nothing_is_lost_and_nothing_is_wider_than_the_terminal(texts: dict[str, str], width: int) -> None:
    shown = side_by_side(texts, width)
    assert all(len(line) <= width for line in shown.split("\n"))
    for text in texts.values():
        for letter in set(text) & set("xyzXYZ0123456789"):
            assert shown.count(letter) >= 1


def test_columns_stand_side_by_side_where_there_is_room() -> None:
    texts = {"base": "one two", "mine": "three\nfour"}
    assert side_by_side(texts, 2 * THINNEST + 2).split("\n")[2].split() == ["one", "two", "three"]
    assert side_by_side(texts, 2 * THINNEST + 1).split("\n") == ["base", "one two", "", "mine", "three", "four"]


def test_an_escape_in_an_answer_is_shown_not_obeyed() -> None:
    assert "\x1b" not in side_by_side({"base": "\x1b[31mred", "b\x1b": "x"}, 80)
