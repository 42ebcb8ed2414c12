"""No example on both sides, the same rows for the same seed, and too little said aloud."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError, DataError
from lorawise.data.rows import Row, RowSet, Where
from lorawise.data.split import FEW, split_validation


def rows_of(*words):
    return RowSet(
        rows=tuple(Row(kind="text", where=Where(path="a.jsonl", line=i), text=word) for i, word in enumerate(words, 1))
    )


def words(rows):
    return [row.text for row in rows]


CONTENTS = st.lists(st.sampled_from([f"{c}{s}" for c in "abcdefghAB" for s in ("", " ", " x", " X")]), min_size=2)


@given(CONTENTS, st.one_of(st.floats(0.01, 0.9), st.integers(1, 20)), st.integers(0, 5), st.randoms())
def test_no_example_stands_on_both_sides_and_order_does_not_matter(contents, validation, seed, random):
    rows = rows_of(*contents)
    try:
        split = split_validation(rows, validation, seed)
    except (ConfigError, DataError):
        return
    assert split.validation is not None
    held = {row.fingerprint for row in split.validation}
    assert not held & {row.fingerprint for row in split.train}
    both = sorted((*split.train, *split.validation), key=lambda row: row.where)
    assert both == list(rows)
    wanted = validation if isinstance(validation, int) else max(1, round(validation * len(rows)))
    assert 1 <= len(split.validation) <= wanted
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = split_validation(RowSet(rows=tuple(shuffled)), validation, seed)
    assert again.validation is not None
    assert sorted(words(again.validation)) == sorted(words(split.validation))


def test_distinct_rows_fill_the_share_exactly_and_the_seed_chooses_them():
    rows = rows_of(*map(str, range(200)))
    first, second = (split_validation(rows, 0.1, seed).validation for seed in (0, 1))
    assert first is not None
    assert second is not None
    assert len(first) == len(second) == 20
    assert words(first) != words(second)
    assert words(first) == sorted(words(first), key=int)
    assert words(first) == words(split_validation(rows, 20, 0).validation)


def test_what_was_skipped_is_counted_on_the_training_side_alone():
    rows = replace(rows_of(*"abcd"), skipped={"not-json": 3})
    split = split_validation(rows, 1)
    assert split.train.skipped == {"not-json": 3}
    assert split.validation is not None
    assert split.validation.skipped == {}


@pytest.mark.parametrize("wanted", [0.0, 1.0, -0.1, 20.0, 0, 10, 11, -1, True, "a", float("nan")])
def test_shares_and_counts_that_cannot_be_meant_are_refused(wanted):
    with pytest.raises(ConfigError, match="validation"):
        split_validation(rows_of(*map(str, range(10))), wanted)


def test_copies_of_one_row_cannot_be_parted():
    with pytest.raises(DataError, match=r"5 rows \(1 distinct\) cannot be parted"):
        split_validation(rows_of(*"aAaaA"), 0.4)


def test_rows_of_a_validation_file_that_stand_in_train_are_counted():
    split = split_validation(rows_of("a", "b c", "d"), rows_of("x", "B  c", "d"))
    leak, few = split.findings
    assert leak.code == "data-leak"
    assert leak.message.startswith("2 of 3 validation rows also stand in train (lines 2, 3)")
    assert (leak.path, leak.line) == ("a.jsonl", 2)
    assert few.code == "data-few-validation"


def test_a_validation_that_is_large_enough_and_apart_is_not_remarked_on():
    train, held = rows_of(*map(str, range(100))), rows_of(*map(str, range(100, 100 + FEW)))
    assert split_validation(train, held).findings == ()
    assert split_validation(train, FEW).findings == ()
    assert split_validation(train, None).validation is None
