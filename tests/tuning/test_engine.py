"""Where packs are trained: what an engine may be called, and what it is refused with."""

import socket
import sys

import pytest
import torch
from tests.tuning.small_study import small_study
from tests.tuning.test_study import member, prepared_run

from lorawise.base.errors import ConfigError, UsageError
from lorawise.tuning.engine import Arrived, Leg, OneProcess
from lorawise.tuning.events import PackStepped
from lorawise.tuning.pack import Pack
from lorawise.tuning.ray_engine import Worker


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "rya"}, "ray"),
        ({"workers": 2}, "--engine ray"),
        ({"engine": "ray", "workers": 0}, "at least one"),
    ],
)
def test_an_engine_that_cannot_be_meant_is_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        small_study(tmp_path, tmp_path / "study", **options)
    assert not (tmp_path / "study/study.json").exists()


def test_a_missing_ray_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"lorawise\[ray\]"):
        small_study(tmp_path, tmp_path / "study", engine="ray")
    assert not (tmp_path / "study/study.json").exists()


def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unheard.getsockname()[1]}")
        with pytest.raises(UsageError, match="does not answer"):
            small_study(tmp_path, tmp_path / "study", engine="ray")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepared_run(tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("other", ["base", "data"])
def test_a_worker_that_finds_other_files_refuses(prepared, other):
    digests = {"base": prepared.files.digest, "data": prepared.inputs.digest} | {other: "another"}
    with pytest.raises(UsageError, match=f"another {other}"):
        Worker().open(prepared.run, **digests, threads=torch.get_num_threads())


def test_a_worker_tells_of_a_leg_what_this_process_tells(prepared):
    leg = Leg(rung=1, first=0, last=6, members=(member(0), member(2)), states={}, tokens=0)
    here = list(OneProcess(Pack(prepared)).train([leg]))
    worker = Worker()
    worker.open(prepared.run, base=prepared.files.digest, data=prepared.inputs.digest, threads=torch.get_num_threads())
    there = list(worker.train(leg))
    steps = [[e.losses for e in told if isinstance(e, PackStepped)] for told in (here, there)]
    assert len(steps[0]) == 6
    assert steps[0] == steps[1]
    one, other = here[-1], there[-1]
    assert isinstance(one, Arrived)
    assert isinstance(other, Arrived)
    assert one.measured == other.measured
    for trial, state in one.states.items():
        assert all(state.tensors[name].equal(other.states[trial].tensors[name]) for name in state.tensors)
