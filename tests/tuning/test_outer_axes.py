"""What a pack shares is an outer axis: each value trains in packs of its own, all compared on the same rows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.workbench import rows_of, tiny_run

from lorawise.base.errors import ConfigError
from lorawise.tuning.events import PackStepped, measured_in
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.shared import rungs_within
from lorawise.tuning.study import tune


def study(work, name, *over, **values):
    run = tiny_run(work, rows=rows_of(60), train__epochs=6, **values)
    found = tune(run, out=work / name, options=StudyOptions(over=over, eliminate="none"))
    return found, StudyFolder(path=found.study).events()


def test_each_batch_trains_alone_and_as_in_a_study_of_it_alone(tmp_path):
    found, events = study(tmp_path, "both", "train.batch_tokens=128,256", "lora.scaling=1,4")
    packs = {event.trials for event in events if isinstance(event, PackStepped)}
    assert packs == {(0, 1), (2, 3)}, "a pack sees one batch"
    ends = {row.trial: row.step for row in found.rows}
    assert ends[0] == ends[1] > 1.5 * ends[2], "epochs are kept, so half the batch is twice the steps"
    assert found.full_run_equivalents == pytest.approx(4), "each setting a whole run of its own"
    alone, _ = study(tmp_path, "alone", "lora.scaling=1,4", train__batch_tokens=128)
    assert {r.trial: r.validation_loss for r in alone.rows} == {
        r.trial: r.validation_loss for r in found.rows if r.setting["train.batch_tokens"] == 128
    }


def test_lengths_are_compared_on_the_same_whole_validation_rows(tmp_path):
    found, events = study(tmp_path, "lengths", "train.max_length=48,96", "lora.scaling=1,4", train__max_length=96)
    measured = measured_in(events, 1)
    assert {len(event.row_losses) for event in measured} == {15}
    assert len({row.validation_loss for row in found.rows}) == 4, "cut rows train another adapter"
    assert measured[0].tokens < measured[-1].tokens


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("train.batch_tokens=128..512", "takes? a pack"),
        ("train.batch_tokens=8,256", "fits no step; raise it, or cut rows shorter\n"),
        ("train.batch_sise=4,8", "batch_size"),
    ],
)
def test_an_outer_axis_that_cannot_be_meant_is_refused(tmp_path, over, said):
    with pytest.raises(ConfigError, match=said):
        study(tmp_path, "refused", over)
    assert not (tmp_path / "refused" / "study.json").exists()


@given(rungs=st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True).map(sorted), total=st.integers(4, 2000))
def test_rungs_keep_their_shares_of_another_run(rungs, total):
    scaled = rungs_within(rungs, total)
    assert len(scaled) == len(rungs)
    assert scaled[-1] == total
    assert scaled[0] >= 1
    assert all(a < b for a, b in itertools.pairwise(scaled))
    assert rungs_within(rungs, rungs[-1]) == tuple(rungs)
