"""Importance against its definition: shares of variance on a whole grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lorawise.tuning.report.importance import of_grid

CELLS = arrays(np.float64, (3, 4, 2), elements=st.floats(-3, 3, width=32))


@given(CELLS)
def test_shares_and_what_is_joint_make_one(cells):
    found = of_grid(["a", "b", "c"], cells)
    if found is None:
        assert cells.std() < 1e-8
        return
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in found.shares.values())
    assert sum(found.shares.values()) + (found.joint or 0.0) == pytest.approx(1.0)


@given(CELLS)
def test_an_axis_that_changes_nothing_has_no_share(cells):
    cells[:, :, 1] = cells[:, :, 0]
    found = of_grid(["a", "b", "c"], cells)
    assert found is None or found.shares["c"] < 1e-12


def test_an_additive_loss_has_no_joint_part_and_its_own_shares():
    a, b = np.array([0.0, 3.0]), np.array([0.0, 1.0])
    found = of_grid(["a", "b"], a[:, None] + b[None, :])
    assert found is not None
    assert found.shares == {"a": pytest.approx(0.9), "b": pytest.approx(0.1)}
    assert found.joint == pytest.approx(0.0)


def test_a_pure_interaction_is_all_joint():
    found = of_grid(["a", "b"], np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert found is not None
    assert found.joint == pytest.approx(1.0)
