"""Two processes on gloo train one adapter: equal to one process, stopped or killed and resumed by another number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.workbench import tiny_folder, tiny_run

from lorawise.runfile import RunFile
from lorawise.training.peers import Peers
from lorawise.training.run import train

LONG = 400  # steps; more than pass before somebody is killed


def processes(world: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """As torchrun starts them, without its agent, which would kill the survivors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lorawise", "train", *arguments, "--json"]
    return [
        subprocess.Popen(
            command,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    told = [process.communicate(timeout=240) for process in started]
    return [(process.returncode, *each) for process, each in zip(started, told, strict=True)]


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "learning_rate" in line}


def wait_for_step(folder: Path, step: int) -> None:
    for _ in range(1200):
        path = folder / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} never came")


def written(run: RunFile, tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(run.to_yaml(), encoding="utf-8")
    return str(path)


def assert_same(one: Path, other: Path) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=2e-5)
    mine, its = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    for name in mine:
        assert (mine[name] - its[name]).abs().max() <= 2e-4 * (1 + its[name].abs().max()), name


def test_each_micro_batch_is_taken_once_however_many_share_them() -> None:
    for world in (1, 2, 3, 7):
        taken = [j for rank in range(world) for j in Peers(rank=rank, world=world).mine(5)]
        assert sorted(taken) == list(range(5))


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, train__micro_batch_tokens=64, train__max_length=60, lora__dropout=0.1)
    leader, follower = ended(processes(2, written(run, tmp_path), "-o", str(tmp_path / "two")))
    assert leader[0] == 0, leader[2]
    assert follower[0] == 0, follower[2]
    assert follower[1] == "", "one JSON document, the leader's"
    assert json.loads(leader[1])["steps"] == 8
    assert (tmp_path / "two" / "report.html").exists()
    train(run, out=tmp_path / "one")
    assert_same(tmp_path / "two", tmp_path / "one")


def test_auto_parts_a_step_among_the_processes(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, train__steps=1, train__warmup=0, train__eval_every=1)
    assert run.train.micro_batch_tokens == "auto"
    assert ended(processes(2, written(run, tmp_path), "-o", str(tmp_path / "two")))[0][0] == 0
    assert "micro_batch_tokens: 128" in (tmp_path / "two" / "run.yaml").read_text(), "half of the step's 256"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["follower killed", "interrupted"])
def test_a_run_that_loses_a_process_goes_on_with_another_number(tmp_path: Path, how: str) -> None:
    base = tiny_folder(tmp_path / "base")
    run = tiny_run(tmp_path, model=base, train__micro_batch_tokens=64, train__max_length=60, train__steps=LONG)
    run = run.with_values({"train.eval_every": LONG, "train.save_every": LONG})
    leader, follower = started = processes(2, written(run, tmp_path), "-o", str(tmp_path / "two"))
    wait_for_step(tmp_path / "two", 5)
    if how == "interrupted":
        leader.send_signal(signal.SIGINT)
    else:
        follower.kill()
    told, _ = ended(started)
    assert told[0] == (130 if how == "interrupted" else 1), told[2]
    if how != "interrupted":
        assert json.loads(told[1])["error"]["code"] == "peer-lost"
        assert "--resume" in json.loads(told[1])["error"]["cure"]
    (saved,) = (tmp_path / "two" / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) >= 5, "nothing that was reached is lost"
    if how == "interrupted":
        for code, _, said in ended(processes(3, "-o", str(tmp_path / "two"), "--resume")):
            assert code == 0, said
    else:
        train(run, out=tmp_path / "two", resume=True)
    train(run, out=tmp_path / "one")
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert found.keys() == expected.keys()
    assert [found[k] for k in range(1, 60)] == pytest.approx([expected[k] for k in range(1, 60)], abs=1e-4)
    assert found[LONG] == pytest.approx(expected[LONG], abs=2e-2), "rounding grows over hundreds of steps"
