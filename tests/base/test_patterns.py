"""A regular expression from a file can neither run for years nor take the memory."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError
from lorawise.base.patterns import MAX_SECONDS, full_match, matches_key


def test_an_honest_pattern_matches_the_whole_name() -> None:
    assert full_match(r".*layers\.\d{1,2}\.(q|v)_proj", "model.layers.11.q_proj")
    assert not full_match(r"q_proj", "model.layers.11.q_proj")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "not a regular expression"),
        ("(" * 900 + ")" * 900, "not a regular expression"),
        ("a" * 5_000, "5,000 characters"),
        ("(?:(?:a{1000}){1000}){1000}", "repeats its parts"),
        ("(?:" * 40 + "a" + "{2})" * 40, "repeats its parts"),
        ("(?:.|..|...)+" * 3 + "(?<!j)$", "backtracks without end"),
    ],
)
def test_a_hostile_pattern_is_a_config_error(pattern: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        full_match(pattern, "model.layers.0.self_attn.q_proj")


names = st.lists(st.sampled_from(["q_proj", "layers", "0", "10", "mlp", "down-proj", "a"]), min_size=1, max_size=4)


@given(names, names, st.sampled_from(["plain", "escaped", "anchored"]), st.booleans())
def test_a_key_that_is_a_name_means_what_its_regex_means(
    key: list[str], name: list[str], form: str, ends_alike: bool
) -> None:
    text = ".".join([*name, *key] if ends_alike else name)
    pattern = ".".join(key) if form == "plain" else r"\.".join(key)
    pattern = f"^{pattern}" if form == "anchored" else pattern
    for candidate in (text, text.replace(".", "x")):
        assert matches_key(pattern, candidate) == full_match(rf"(.*\.)?({pattern})", candidate)


def test_many_hostile_patterns_cost_less_than_as_many_times_the_limit() -> None:
    began = time.monotonic()
    for number in range(60):
        for _ in range(3):
            with pytest.raises(ConfigError, match="backtracks without end"):
                full_match("(?:.|..|...)+" * 3 + f"(?<!j)(?<!k{number})$", "model.layers.0.self_attn.q_proj")
    assert time.monotonic() - began < 60 * MAX_SECONDS / 2
    assert full_match(r".*layers\.\d{1,2}\.(q|v)_proj", "model.layers.11.q_proj")
