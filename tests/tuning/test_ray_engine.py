"""A study on a local Ray of two CPU workers: the table of one process, also when a worker is killed on the way.

pytest -m slow tests/tuning/test_ray_engine.py        wants `pip install 'lorawise[ray]'`
"""

import os
import signal

import pytest
from tests.tuning.small_study import small_study

from lorawise.base.errors import ConfigError
from lorawise.tuning.events import PackStepped, RungEnded, TrialMeasured, WorkerChanged
from lorawise.tuning.folder import StudyFolder

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def events_of(found):
    return StudyFolder(path=found.study).events()


def settled(found):
    return [(row.trial, row.state, row.step, row.tokens) for row in found.rows]


def losses(found):
    return {row.trial: row.validation_loss for row in found.rows}


def test_two_workers_make_the_table_of_one_process_and_a_killed_one_loses_nothing(tmp_path):
    alone = small_study(tmp_path, tmp_path / "alone")
    pair = small_study(tmp_path, tmp_path / "pair", engine="ray", workers=2)
    killed: list[int] = []
    joined: list[WorkerChanged] = []

    def kill(event) -> None:
        if isinstance(event, WorkerChanged) and event.state == "joined":
            joined.append(event)
        if isinstance(event, PackStepped) and event.step == 9 and not killed and len(joined) == 2:
            killed.append(joined[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    maimed = small_study(tmp_path, tmp_path / "maimed", engine="ray", workers=2, readers=(kill,))
    assert killed
    lost = [e for e in events_of(maimed) if isinstance(e, WorkerChanged) and e.state == "lost"]
    assert [e.pid for e in lost] == killed
    assert lost[0].trials

    assert settled(pair) == settled(maimed) == settled(alone)
    assert losses(pair) == losses(maimed), "the same packs, so the same bits"
    assert losses(pair) == pytest.approx(losses(alone), abs=1e-5)
    assert maimed.full_run_equivalents == pair.full_run_equivalents == alone.full_run_equivalents
    for found in (pair, maimed):
        assert [e.ranking for e in events_of(found) if isinstance(e, RungEnded)] == [
            e.ranking for e in events_of(alone) if isinstance(e, RungEnded)
        ]
        steps = [(e.trials, e.step) for e in events_of(found) if isinstance(e, PackStepped)]
        assert len(steps) == len(set(steps)), "no step is told twice"
        measured = [(e.trial, e.rung) for e in events_of(found) if isinstance(e, TrialMeasured)]
        assert len(measured) == len(set(measured)) == 12
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (pair.adapter / name).read_bytes() == (maimed.adapter / name).read_bytes()


def test_a_study_begun_on_a_cluster_goes_on_in_one_process(tmp_path):
    whole = small_study(tmp_path, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(event) -> None:
        if isinstance(event, PackStepped) and event.rung == 2:
            raise Killed

    with pytest.raises(Killed):
        small_study(tmp_path, tmp_path / "study", engine="ray", workers=2, readers=(kill,))
    resumed = small_study(tmp_path, tmp_path / "study", resume=True)
    assert settled(resumed) == settled(whole)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-5)


def test_more_workers_than_the_cluster_has_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at most"):
        small_study(tmp_path, tmp_path / "study", engine="ray", workers=4096)
