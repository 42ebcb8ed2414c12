"""Differences between two models on the same rows: their intervals hold the truth as often as they say."""

import math

import numpy as np
import pytest

from lorawise.training.paired import Gap, loss_gap, match_gap


def test_a_loss_difference_is_that_of_the_losses_told() -> None:
    generator = np.random.default_rng(0)
    one, other, tokens = generator.random(30), generator.random(30), generator.integers(1, 50, 30)
    gap = loss_gap(one, other, tokens)
    wanted = (one * tokens).sum() / tokens.sum() - (other * tokens).sum() / tokens.sum()
    assert gap.difference == pytest.approx(wanted)
    assert gap.low < gap.difference < gap.high
    mirrored = loss_gap(other, one, tokens)
    assert (mirrored.low, mirrored.high) == pytest.approx((-gap.high, -gap.low))


def test_a_loss_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """60 rows of uneven length, losses skewed and shared between the models; the truth is a shift of 0.05."""
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        hard, tokens = generator.gamma(2.0, 0.5, 60), generator.integers(5, 100, 60)
        one = hard + 0.05 + generator.normal(0, 0.2, 60)
        held += (gap := loss_gap(one, hard, tokens, seed=trial)).low <= 0.05 <= gap.high
    assert 0.89 <= held / 200 <= 0.99


def test_pairing_is_what_makes_an_interval_narrow() -> None:
    generator = np.random.default_rng(2)
    hard, tokens = generator.gamma(2.0, 0.5, 100), np.full(100, 20)
    near = hard + generator.normal(0.02, 0.01, 100)
    assert loss_gap(near, hard, tokens).tells
    assert not loss_gap(generator.permutation(near), hard, tokens).tells


def test_a_model_beside_itself_differs_by_nothing() -> None:
    losses, tokens = np.arange(1.0, 9.0), np.arange(1, 9)
    assert loss_gap(losses, losses, tokens) == Gap(difference=0.0, low=0.0, high=0.0, rows=8)
    right = np.arange(8) % 2 == 0
    gap = match_gap(right, right)
    assert gap.difference == 0
    assert gap.low < 0 < gap.high
    assert not gap.tells


@pytest.mark.parametrize("truth", [0.0, 0.2])
def test_a_match_interval_holds_the_truth_about_as_often_as_it_says(truth: float) -> None:
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        other = generator.random(50) < 0.5
        one = np.where(generator.random(50) < 2 * truth, True, other)  # half of the rows lifted were right already
        gap = match_gap(one, other)
        held += gap.low <= truth <= gap.high
    assert held / 400 >= 0.92


def test_what_one_row_or_a_diverged_model_tells_is_nothing() -> None:
    alone = loss_gap(np.array([1.0]), np.array([2.0]), np.array([3]))
    assert (alone.difference, alone.low, alone.high) == (-1.0, -math.inf, math.inf)
    diverged = loss_gap(np.array([1.0, math.nan]), np.array([2.0, 2.0]), np.array([3, 3]))
    assert math.isnan(diverged.difference)
    assert not diverged.tells
    assert not match_gap(np.array([True]), np.array([False])).tells


def test_more_rows_than_fit_in_one_table_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    one, other, tokens = generator.random(40), generator.random(40), np.full(40, 3)
    whole = loss_gap(one, other, tokens)
    monkeypatch.setattr("lorawise.training.paired._AT_ONCE", 400)
    assert loss_gap(one, other, tokens) == whole
