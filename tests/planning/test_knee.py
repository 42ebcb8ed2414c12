"""How many settings side by side: a power of two that fills the device, and what was measured agrees."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.planning.fit import AT_ONCE, AT_ONCE_ELSEWHERE
from lorawise.planning.knee import MOST_SLOTS, knee

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@given(tokens=st.integers(1, 100_000), device=st.sampled_from(["cpu", "cuda"]))
def test_it_is_the_fewest_settings_that_fill_the_device(tokens, device):
    slots, at_once = knee(tokens, device), AT_ONCE.get(device, AT_ONCE_ELSEWHERE)
    assert slots in (1, 2, 4, 8, 16)
    assert slots * tokens >= at_once or slots == MOST_SLOTS
    assert slots == 1 or slots * tokens < 2 * at_once


@pytest.mark.parametrize("path", sorted(RESULTS.glob("pack-*.json")), ids=lambda path: path.stem)
def test_the_planner_picks_what_was_measured_to_pay(path):
    measured = json.loads(path.read_text(encoding="utf-8"))
    device = path.stem.split("-")[1]
    for shape in measured["results"]:
        each = {int(n): seconds / int(n) for n, seconds in shape["median_seconds"].items()}
        planned = knee(shape["tokens"], device)
        assert each[planned] <= 1.1 * min(each.values()), shape["shape"]
