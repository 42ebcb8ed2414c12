"""The learning rate: the guide's rule, what was measured, and what the public sweep can and cannot say of either."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.planning.evidence import SHIPPED, SWEEP
from lorawise.planning.rate import (
    GUIDE_UNSTABLE,
    LAWS,
    Score,
    interval,
    learning_rate,
    rounded,
    score,
    scores,
    strength,
    strength_in_words,
)

ROOT = Path(__file__).parents[2]
ranks = st.integers(1, 512)
scalings = st.floats(2**-4, 2**5)
batches = st.floats(1, 1024)


@given(ranks, scalings, batches)
def test_the_rate_is_inverse_to_the_scaling_as_the_guide_rules(r: int, scaling: float, batch: float) -> None:
    at_one = learning_rate(r=r, scaling=1.0, batch=batch)
    assert learning_rate(r=r, scaling=scaling, batch=batch) * scaling == pytest.approx(at_one)


@given(ranks, scalings)
def test_the_guides_law_is_two_e_minus_four_over_scaling_whatever_the_rank(r: int, scaling: float) -> None:
    assert learning_rate(r=r, scaling=scaling, law="the guide") == pytest.approx(2e-4 / scaling)


@given(ranks, st.floats(1, 512))
def test_one_law_holds_alpha_times_rate_fixed_as_lora_without_regret_measured(r: int, alpha: float) -> None:
    rate = learning_rate(r=r, scaling=alpha / r, law="alpha fixed")
    assert strength(alpha=alpha, rate=rate) == pytest.approx(strength(alpha=32.0, rate=2e-4))


@given(ranks, scalings, batches)
def test_the_advice_lies_between_the_two_laws(r: int, scaling: float, batch: float) -> None:
    bounds = [learning_rate(r=r, scaling=scaling, batch=batch, law=law) for law in LAWS]
    ours = learning_rate(r=r, scaling=scaling, batch=batch)
    assert min(bounds) * (1 - 1e-12) <= ours <= max(bounds) * (1 + 1e-12)


def test_the_guides_script_and_its_rule_are_both_in_the_interval() -> None:
    """2e-4 / scaling says 1e-4 at scaling 2, the script writes 2e-4 there."""
    for r in (4, 8, 16, 32):
        low, high = interval(learning_rate(r=r, scaling=2.0), 2.0)
        assert low <= 1e-4 <= high
        assert low <= 2e-4 <= high
    assert learning_rate(r=8, scaling=2.0) == pytest.approx(2e-4)
    assert learning_rate(r=32, scaling=2.0) == pytest.approx(1e-4)


def test_the_interval_stays_below_what_the_guide_calls_unstable() -> None:
    """Scaling 4 with 5e-4 spikes."""
    assert pytest.approx(4 * 5e-4) == GUIDE_UNSTABLE
    for r in (4, 8, 16, 64):
        for scaling in (0.5, 1.0, 2.0, 4.0):
            rate = learning_rate(r=r, scaling=scaling)
            low, high = interval(rate, scaling)
            assert low < rate <= high
            assert high * scaling <= GUIDE_UNSTABLE * (1 + 1e-9) or high == rate


def test_how_the_rate_falls_with_the_rank_is_near_what_was_measured() -> None:
    """arXiv 2602.04998: 5.6-fold from r 4 to r 256; the guide says 1-fold, alpha fixed 64-fold."""
    falls = {law: learning_rate(r=4, scaling=1, law=law) / learning_rate(r=256, scaling=1, law=law) for law in LAWS}
    assert falls == pytest.approx({"the guide": 1.0, "lorawise": 8.0, "alpha fixed": 64.0})
    nearest = min(falls, key=lambda law: abs(math.log(falls[law] / 5.6)))
    assert nearest == "lorawise"


def test_on_the_sweep_the_advice_is_the_fixed_baseline_and_loses_no_more() -> None:
    ours = learning_rate(r=SWEEP.r, scaling=SWEEP.alpha / SWEEP.r, batch=SWEEP.batch)
    assert ours == pytest.approx(3e-4)
    told = score("ours", ours)
    assert (told.best_in, told.models, told.median, told.worst) == (22, 35, 0.0, 0.026)


def test_a_rate_the_sweep_did_not_publish_is_not_scored() -> None:
    assert score("between", 2e-4) == Score(rule="between", rate=2e-4, best_in=None, models=35, median=None, worst=None)
    tried = score("tried", 1e-3)
    assert (tried.best_in, tried.median) == (10, None)
    assert score("diverging", 3e-3).best_in == 0


def test_the_sweeps_figures_are_as_published() -> None:
    assert SWEEP.models == 35
    assert SWEEP.best == {3e-4: 22, 1e-3: 10, 4e-4: 2, 1e-4: 1}
    assert (SWEEP.diverging, SWEEP.diverged, SWEEP.divergences) == (3e-3, 72, 80)


def test_strength_is_told_against_what_tools_ship() -> None:
    assert strength_in_words(32 * 1e-4) == "about what Unsloth ships; 5× what TRL's CLI does"
    assert strength_in_words(strength(alpha=32, rate=2e-5)) == "about what TRL's CLI ships"
    assert strength_in_words(4 * 0.128).startswith("4× what torchtune's largest ships")
    assert strength_in_words(1e-4).startswith("1/4 of what PEFT with Trainer ships")
    assert [each.strength for each in SHIPPED] == sorted(each.strength for each in SHIPPED)


@given(st.floats(1e-8, 1e3))
def test_any_strength_has_words(value: float) -> None:
    assert "ships" in strength_in_words(value)


def test_rates_are_rounded_to_what_is_known() -> None:
    assert rounded(1.41421e-4) == 1.4e-4


def test_the_page_shows_the_scores_as_they_are_computed() -> None:
    page = (ROOT / "docs" / "learning-rate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\S+) \| (.+?) \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
    shown = {cells[0]: cells[1:] for cells in rows}
    for each in scores():
        best = "not tried" if each.best_in is None else f"{each.best_in} of {each.models}"
        median = "not published" if each.median is None else f"{100 * each.median:g} %"
        worst = "not published" if each.worst is None else f"{100 * each.worst:g} %"
        mantissa, exponent = f"{each.rate:.1e}".split("e")
        assert shown[each.rule] == (f"{mantissa.removesuffix('.0')}e{int(exponent)}", best, median, worst)
