"""A budget: full-run equivalents, tokens or minutes; what settings take of it, and what is tried within it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tuning.small_study import small_study
from tests.workbench import rows_of, tiny_run

from lorawise.base.errors import ConfigError
from lorawise.tuning.budget import Budget, cost, parse_budget, trials_within
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.study import tune


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2.5", 2.5, "runs"),
        ("2.5 runs", 2.5, "runs"),
        ("200k tokens", 2e5, "tokens"),
        ("1.5M tokens", 1.5e6, "tokens"),
        ("30min", 30, "minutes"),
        ("2 h", 120, "minutes"),
    ],
)
def test_it_is_read_as_people_write_it(text, amount, unit):
    assert parse_budget(text) == Budget(amount=amount, unit=unit)


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "3 weeks", "1.2.3", "k tokens", "inf"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)


def test_halving_costs_what_the_literature_says():
    assert cost(240, 16, eliminate="halving") == pytest.approx(2.5)
    assert cost(240, 16, eliminate="none") == 16
    assert cost(64, 9, eliminate="halving") == pytest.approx(9 * 16 / 64 + 3 * 48 / 64)


@given(
    runs=st.floats(0.1, 40),
    total=st.integers(1, 2000),
    eliminate=st.sampled_from(["halving", "median", "paired", "none"]),
)
def test_what_is_tried_within_a_budget_never_costs_more(runs, total, eliminate):
    count = trials_within(runs, total, eliminate=eliminate)
    assert count == 0 or cost(total, count, eliminate=eliminate) <= runs + 1e-6


def test_a_range_is_searched_with_as_many_settings_as_tokens_allow(tmp_path):
    over = ("train.learning_rate=1e-4..2e-2 log",)
    found = small_study(tmp_path, tmp_path / "study", over=over, budget="40k tokens")
    a_run = max(row.tokens for row in found.rows)
    assert found.full_run_equivalents * a_run <= 40_500
    assert cost(64, len(found.rows) + 1, eliminate="halving") * a_run > 39_500, "one more would be too many"
    again = small_study(tmp_path, tmp_path / "study", over=over, budget="40k tokens", resume=True)
    assert again.rows == found.rows


def test_minutes_are_measured_once_and_kept(tmp_path):
    over = ("train.learning_rate=1e-4..2e-2 log",)
    with pytest.raises(ConfigError, match=r"--budget 0.001 min is .* runs, less than"):
        small_study(tmp_path, tmp_path / "study", budget="0.001 min")
    found = small_study(tmp_path, tmp_path / "study", over=over, budget="0.2 min")
    assert found.seconds < 12
    assert small_study(tmp_path, tmp_path / "study", over=over, budget="0.2 min", resume=True).rows == found.rows


@pytest.mark.parametrize(("budget", "axes"), [(None, 2), ("40", 2), ("60", 3)])
def test_ranks_are_an_axis_too_where_the_budget_allows(tmp_path, budget, axes):
    run = tiny_run(tmp_path, rows=rows_of(16), train__steps=2, train__warmup=0)
    found = tune(run, out=tmp_path / "study", options=StudyOptions(budget=budget, eliminate="none"))
    assert len(found.best.setting) == axes
    assert len(found.rows) == (48 if axes == 3 else 16)
    scalings = {row.full["scaling"] for row in found.rows}
    assert scalings == {1.0, 2.0, 4.0, 8.0}, "a rank keeps the scaling"
