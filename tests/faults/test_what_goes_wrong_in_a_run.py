"""Faults, each tried on a real run: a clear error with its cure, nothing half-written, the last good state kept."""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.workbench import VOCABULARY, rows_of, tiny_folder, tiny_run, write_rows

import lorawise
from lorawise.base import files
from lorawise.base.errors import (
    AdapterError,
    ConfigError,
    DataError,
    DivergedError,
    Interrupted,
    MemoryExhausted,
    ModelError,
    PreflightError,
    StorageError,
    UsageError,
)
from lorawise.models.files import resolve_model
from lorawise.report.events import Event, Noted, RunEnded, RunStarted, Saved, StepDone
from lorawise.store import load_adapter, read_provenance
from lorawise.training import exhausted, memory
from lorawise.training.folder import RunFolder
from lorawise.training.inputs import read_inputs
from lorawise.training.run import train
from lorawise.training.setup import Prepared, prepare
from lorawise.training.state import Progress


def ready(run) -> Prepared:
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


class Listener:
    """Keeps every event, and does something at one step."""

    def __init__(self, at: int = 0, do=lambda: None) -> None:
        self.at, self.do = at, do
        self.events: list[Event] = []
        self.closed = False

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StepDone) and event.step == self.at:
            self.do()

    def close(self) -> None:
        self.closed = True

    def codes(self) -> list[str]:
        return [event.finding.code for event in self.events if isinstance(event, Noted)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model") / "base")


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*.partial")]


def test_a_disk_that_fills_during_a_save_keeps_the_checkpoint_before(tmp_path, base, monkeypatch):
    run = tiny_run(tmp_path, model=base)
    real = files._sync

    def full(path: Path) -> None:
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(StorageError, match="no space left while writing") as met:
        train(run, out=tmp_path / "run")
    assert "free space" in met.value.cure
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert not leftovers(tmp_path)
    monkeypatch.setattr(files, "_sync", real)
    assert train(run, out=tmp_path / "run", resume=True).steps == 8


@pytest.mark.parametrize("room", ["enough for the report", "none"])
def test_a_run_that_fails_leaves_no_report_of_an_earlier_state(room, tmp_path, base, monkeypatch):
    run = tiny_run(tmp_path, model=base)
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "run", readers=[Listener(3, lambda: os.kill(os.getpid(), signal.SIGINT))])
    report = tmp_path / "run" / "report.html"
    assert "Stopped at step 3" in report.read_text()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(folder: Path) -> Path:
        raise StorageError("no space left")

    monkeypatch.setattr(files, "_sync", full)
    if room == "none":
        monkeypatch.setattr("lorawise.training.run.write_report", refuse)
    listener = Listener()
    with pytest.raises(StorageError, match="no space left"):
        train(run, out=tmp_path / "run", resume=True, readers=[listener])
    assert listener.events[-1].reason == "failed"
    if room == "none":
        assert not report.exists()
    else:
        assert "Something went wrong after step 4" in report.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("size", ["64k", "300k"])
def test_a_disk_that_is_really_full_says_so_and_leaves_nothing_torn(tmp_path, base, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(StorageError, match="no space left"):
            train(tiny_run(tmp_path, model=base), out=disk / "run")
        assert not leftovers(disk)
        for whole in (disk / "run" / "checkpoints").glob("step-*"):
            assert files.verify_folder(whole) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_output_is_refused_before_any_work(tmp_path, base):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        listener = Listener()
        with pytest.raises(StorageError, match="may not write") as met:
            train(tiny_run(tmp_path, model=base), out=disk / "run", readers=[listener])
        assert "-o" in met.value.cure
        assert not listener.events
        assert listener.closed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


FILES = (
    "parameter.safetensors",
    "exp_avg.safetensors",
    "exp_avg_sq.safetensors",
    "progress.json",
    "optimizer.json",
    "identity.json",
    "manifest.json",
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("stopped")
    run = tiny_run(folder, model=base, train__eval_every=8)
    with pytest.raises(Interrupted):
        train(run, out=folder / "run", readers=[Listener(5, lambda: os.kill(os.getpid(), signal.SIGINT))])
    return run, folder / "run"


@pytest.mark.parametrize("how", ["cut", "gone", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_torn_at_any_file_is_passed_over_for_the_one_before(name, how, stopped, tmp_path):
    run, folder = stopped
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    victim = again / "checkpoints" / "step-000005" / name
    content = bytearray(victim.read_bytes())
    match how:
        case "cut":
            victim.write_bytes(content[: len(content) // 2])
        case "gone":
            victim.unlink()
        case "flipped":
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
    listener = Listener()
    result = train(run, out=again, resume=True, readers=[listener])
    assert result.steps == 8
    assert "torn-checkpoint" in listener.codes()
    assert next(event.step for event in listener.events if isinstance(event, StepDone)) == 5


def resigned(checkpoint: Path) -> None:
    """Make the manifest vouch for what the files hold now."""
    manifest = checkpoint / "manifest.json"
    names = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({name: files.sha256_file(checkpoint / name) for name in names}))


@pytest.mark.parametrize(
    "change", [{"another version's": 1}, {"evaluations": None}, {"step": 7}, {"ended": "so"}], ids=str
)
def test_progress_that_this_version_did_not_write_is_passed_over(change, stopped, tmp_path):
    run, folder = stopped
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    path = again / "checkpoints" / "step-000005" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    resigned(path.parent)
    listener = Listener()
    assert train(run, out=again, resume=True, readers=[listener]).steps == 8
    assert "torn-checkpoint" in listener.codes()


@pytest.mark.parametrize("content", ["{}", "[1]", '{"counts": 1}'])
def test_counters_that_this_version_did_not_write_are_named(content, stopped, tmp_path):
    run, folder = stopped
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    path = again / "checkpoints" / "step-000005" / "optimizer.json"
    path.write_text(content)
    resigned(path.parent)
    with pytest.raises(StorageError, match=r"optimizer\.json") as met:
        train(run, out=again, resume=True)
    assert "remove that checkpoint" in met.value.cure


@pytest.mark.parametrize("content", ['{"findings": 5, "started": []}', '{"findings": [1, {"x": 2}]}', "[]", "{"])
def test_facts_that_were_tampered_with_do_not_stop_a_resume(content, stopped, tmp_path):
    run, folder = stopped
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    (again / "facts.json").write_text(content)
    assert train(run, out=again, resume=True).steps == 8
    assert (again / "report.html").is_file()


def test_a_resume_with_other_threads_says_that_bits_may_differ(stopped, tmp_path):
    run, folder = stopped
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    torch.set_num_threads(2)
    try:
        result = train(run, out=again, resume=True)
    finally:
        torch.set_num_threads(1)
    (found,) = [each for each in result.findings if each.code == "other-threads"]
    assert "OMP_NUM_THREADS=1" in found.cure


def test_with_every_checkpoint_torn_the_run_starts_from_the_first_step_and_says_so(stopped, tmp_path):
    run, folder = stopped
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    for checkpoint in (again / "checkpoints").iterdir():
        (checkpoint / "parameter.safetensors").write_bytes(b"torn")
    listener = Listener()
    train(run, out=again, resume=True, readers=[listener])
    assert listener.codes().count("torn-checkpoint") == 2
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))
    assert [line.get("name") for line in lines].count("base") == 1
    assert "resumed-from-start" in listener.codes()
    assert next(event.step for event in listener.events if isinstance(event, StepDone)) == 1


def test_data_deleted_mid_run_does_not_stop_it_and_a_resume_names_it(tmp_path, base):
    run = tiny_run(tmp_path, model=base)
    data = tmp_path / "rows.jsonl"
    assert train(run, out=tmp_path / "run", readers=[Listener(1, data.unlink)]).steps == 8
    write_rows(data, rows_of(24))
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "other", readers=[Listener(3, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    data.unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        train(run, out=tmp_path / "other", resume=True)
    assert files.verify_folder(tmp_path / "other" / "checkpoints" / "step-000003") == []


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced by a file"])
def test_a_run_whose_folder_is_taken_away_stops_there_and_makes_none_anew(how, tmp_path, base):
    out = tmp_path / "run"

    def take_away() -> None:
        if how == "moved":
            out.rename(tmp_path / "moved")
            return
        shutil.rmtree(out)
        if how != "deleted":
            out.write_text("mine")

    listener = Listener(3, take_away)
    with pytest.raises(StorageError, match="no longer this run's folder") as met:
        train(tiny_run(tmp_path, model=base), out=out, readers=[listener])
    assert met.value.exit_code == 1
    assert "--resume -o" in met.value.cure
    assert (listener.events[-1].reason, listener.events[-1].step) == ("failed", 3)
    assert not out.is_dir()
    if how == "moved":
        assert train(tiny_run(tmp_path, model=base), out=tmp_path / "moved", resume=True).steps == 8


def test_an_adapter_deleted_mid_run_is_told_and_the_last_one_kept(tmp_path, base, monkeypatch):
    monkeypatch.setattr(Progress, "improves", lambda self, loss: self.best_loss is None)  # step 4 stays the best
    adapter = tmp_path / "run" / "adapter"
    listener = Listener(5, lambda: shutil.rmtree(adapter))
    result = train(tiny_run(tmp_path, model=base), out=tmp_path / "run", readers=[listener])
    assert "adapter-gone" in listener.codes()
    assert result.adapter == adapter
    assert read_provenance(adapter, load_adapter(adapter)).run["step"] == 8


def test_a_rank_beyond_the_width_of_a_layer_is_told_with_the_layer(tmp_path, base):
    listener = Listener()
    train(tiny_run(tmp_path, model=base, lora__r=40), out=tmp_path / "run", readers=[listener])
    [found] = [e.finding for e in listener.events if isinstance(e, Noted) and e.finding.code == "rank-beyond-width"]
    assert "r 40 is more than model.layers.0.self_attn.k_proj (16 wide) and 13 more" in found.message
    assert "lora.r: 16" in found.cure
    fits = Listener()
    train(tiny_run(tmp_path, model=base, lora__r=16), out=tmp_path / "fits", readers=[fits])
    assert "rank-beyond-width" not in fits.codes()


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_state_before(tmp_path, base, monkeypatch):
    from lorawise.training.objective import NextToken

    real, calls = NextToken.__call__, []

    def poisoned(self, model, batch, *, n=1):
        parts = real(self, model, batch, n=n)
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 5:  # preflight is the first
                parts.sums.data.fill_(float("nan"))
        return parts

    monkeypatch.setattr(NextToken, "__call__", poisoned)
    run = tiny_run(tmp_path, model=base, train__save_every=8, train__eval_every=8)
    listener = Listener()
    with pytest.raises(DivergedError, match="loss is nan at step 4") as met:
        train(run, out=tmp_path / "run", readers=[listener])
    assert "learning_rate × scaling" in met.value.cure
    assert [event.step for event in listener.events if isinstance(event, Saved)] == [3]
    assert listener.events[-1].reason == "diverged"
    assert isinstance(listener.events[-1], RunEnded)
    load_adapter(tmp_path / "run" / "adapter")
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_learning_rate_far_too_high_diverges_with_a_cure(tmp_path, base):
    run = tiny_run(tmp_path, model=base, train__learning_rate=1e30, train__warmup=0, train__clip=None)
    with pytest.raises(DivergedError, match="at step"):
        train(run, out=tmp_path / "run")


def test_no_space_for_the_cache_is_told_and_trains_anyway(tmp_path, base, monkeypatch):
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setenv("LORAWISE_CACHE", str(blocked))
    listener = Listener()
    assert train(tiny_run(tmp_path, model=base), out=tmp_path / "run", readers=[listener]).steps == 8
    assert any("cache" in code for code in listener.codes())


def test_an_unknown_target_names_the_nearest_and_leaves_no_folder(tmp_path, base):
    run = tiny_run(tmp_path, model=base, lora__target_modules=["q_prj"])
    with pytest.raises((AdapterError, ConfigError), match="q_prj") as met:
        train(run, out=tmp_path / "run")
    assert "q_proj" in str(met.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_no_adapted_module_is_refused(kind, tmp_path, base):
    run = tiny_run(tmp_path, model=base, **{f"lora__{kind}": {"q_prj": 8}})
    with pytest.raises(ConfigError, match="'q_prj', which none of the") as met:
        train(run, out=tmp_path / "run")
    assert "q_proj" in met.value.cure
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, base, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="not installed"):
        train(tiny_run(tmp_path, model=base, train__trackers=["wandb"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_when_every_row_was_skipped_the_rows_and_reasons_are_told(tmp_path, base):
    rows = [{"messages": [{"role": "user", "content": "y" * 200}, {"role": "assistant", "content": "no"}]}] * 3
    run = tiny_run(tmp_path, model=base, rows=rows, data__on_bad="skip", data__validation=None)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: no trained token"):
        train(run, out=tmp_path / "run")


def long_rows() -> list[dict]:
    turns = [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "y" * 30}]
    return [*rows_of(12), {"messages": [*turns, *turns]}]


def test_rows_longer_than_a_table_of_positions_are_cut_there_and_told(tmp_path):
    base = tiny_folder(tmp_path / "base", "gpt2")
    listener = Listener()
    run = tiny_run(tmp_path, model=base, rows=long_rows(), train__max_length=600, train__batch_tokens=600)
    train(run.with_values({"data.validation": None}), out=tmp_path / "run", readers=[listener])
    assert {"truncated", "positions"} <= set(listener.codes())


def test_rows_longer_than_a_rotary_window_are_trained_and_told(tmp_path, base):
    listener = Listener()
    run = tiny_run(tmp_path, model=base, rows=long_rows(), train__max_length=600, train__batch_tokens=600)
    train(run.with_values({"data.validation": None}), out=tmp_path / "run", readers=[listener])
    assert "beyond-window" in listener.codes()
    assert "truncated" not in listener.codes()


def test_a_tokenizer_of_another_model_is_refused_by_its_ids(tmp_path):
    base = tiny_folder(tmp_path / "base", vocab_size=VOCABULARY - 200, pad_token_id=0, eos_token_id=3)
    with pytest.raises(ModelError, match=r"gives token \d+, and the model has embeddings for 60"):
        train(tiny_run(tmp_path, model=base), out=tmp_path / "run")
    loaded = lorawise.load(base)
    with pytest.raises(ModelError, match="the model has embeddings for 60"):
        loaded.generate("zzz")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_data_is_refused(content, tmp_path, base):
    run = tiny_run(tmp_path, model=base)
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError):
        train(run, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_refuses_chats_and_takes_completions(tmp_path):
    base = tiny_folder(tmp_path / "base", template=None)
    with pytest.raises(DataError, match="chat template") as met:
        train(tiny_run(tmp_path, model=base), out=tmp_path / "run")
    assert "prompt/completion" in met.value.cure
    rows = [{"prompt": f"{i} plus one is", "completion": f" {i + 1}"} for i in range(24)]
    assert train(tiny_run(tmp_path, model=base, rows=rows), out=tmp_path / "run").steps == 8


@pytest.mark.parametrize("packing", [True, False])
def test_a_tokenizer_without_pad_trains(packing, tmp_path):
    base = tiny_folder(tmp_path / "base", pad=False, pad_token_id=None)
    assert train(tiny_run(tmp_path, model=base, train__packing=packing), out=tmp_path / "run").steps == 8


def test_rows_cut_before_any_answer_ends_stop_in_preflight(tmp_path, base):
    rows = [
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": f"{i} " + "on " * 60}]}
        for i in range(24)
    ]
    with pytest.raises(PreflightError, match="the end of an answer is trained") as met:
        train(tiny_run(tmp_path, model=base, rows=rows), out=tmp_path / "run")
    assert "max_length" in met.value.cure
    assert not (tmp_path / "run").exists()


ALLOCATIONS = {
    "an accelerator's": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python's": MemoryError,
    "torch's on a CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
}


def exhausted_at(monkeypatch, call: int, error=ALLOCATIONS["torch's on a CPU"], hold: int = 0) -> None:
    """The loss is asked for, and the `call`th time there is no memory; before that, so many bytes are really taken."""
    from lorawise.training.objective import NextToken

    real, calls = NextToken.__call__, []

    def counted(self, model, batch, *, n=1):
        calls.append(torch.ones(hold // 4) if len(calls) + 1 == call else None)
        if len(calls) == call:
            raise error()
        return real(self, model, batch, n=n)

    monkeypatch.setattr(NextToken, "__call__", counted)


@pytest.mark.parametrize("kind", ALLOCATIONS)
def test_out_of_memory_before_the_first_step_is_told_with_its_cure_and_leaves_nothing(
    kind, tmp_path, base, monkeypatch
):
    exhausted_at(monkeypatch, 1, ALLOCATIONS[kind])
    with pytest.raises(MemoryExhausted, match="out of memory") as met:
        train(tiny_run(tmp_path, model=base), out=tmp_path / "run")
    assert "train.m" in met.value.cure
    assert met.value.code == "out-of-memory"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ALLOCATIONS)
def test_out_of_memory_in_a_step_loses_no_step_and_the_run_goes_on_to_the_bit(kind, tmp_path, base, monkeypatch):
    run = tiny_run(tmp_path, model=base, train__eval_every=100, train__save_every=100)
    train(run, out=tmp_path / "straight")
    before = 1 + 1 + 2  # preflight's step and its evaluation's largest batch, then the base on two batches
    with monkeypatch.context() as patch, pytest.raises(MemoryExhausted, match="out of memory"):
        exhausted_at(patch, before + 6, ALLOCATIONS[kind])
        train(run, out=tmp_path / "stopped")
    saved = sorted(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir())
    assert saved == ["step-000005"], "the sixth step failed, and changed nothing"
    assert (
        "failed"
        in (tmp_path / "stopped" / "metrics.jsonl").read_text() + (tmp_path / "stopped" / "facts.json").read_text()
    )
    train(run, out=tmp_path / "stopped", resume=True)
    names = ("adapter/adapter_model.safetensors", "checkpoints/step-000008/parameter.safetensors")
    for name in names:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize("went", [5, 9], ids=["between", "after the last step"])
def test_an_evaluation_that_memory_ran_out_in_is_made_when_the_run_goes_on(went, tmp_path, base, monkeypatch):
    """Going on with the frugal memory that the error advises, to the bits of the run that never failed."""
    run = tiny_run(tmp_path, model=base, train__eval_every=4, train__save_every=100)
    train(run, out=tmp_path / "straight")
    before = 1 + 1 + 2 + (2 if went == 9 else 0)  # the same as above, and the evaluation after step 4
    with monkeypatch.context() as patch, pytest.raises(MemoryExhausted):
        exhausted_at(patch, before + went, MemoryError)
        train(run, out=tmp_path / "stopped")
    train(run.with_values({"train.memory": "frugal"}), out=tmp_path / "stopped", resume=True)
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-000008/parameter.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    made = [
        json.loads((tmp_path / out / "checkpoints/step-000008/progress.json").read_text())["evaluations"]
        for out in ("straight", "stopped")
    ]
    assert [each["step"] for each in made[1]] == [0, 4, 8]
    assert made[1] == made[0]
    assert "memory: frugal" in (tmp_path / "stopped" / "run.yaml").read_text()


def test_the_cause_that_grew_beyond_its_prediction_is_named_with_what_would_fit(tmp_path, base, monkeypatch):
    """A gibibyte that nobody predicted is really taken in a step."""
    exhausted_at(monkeypatch, 6, hold=2**30)
    run = tiny_run(tmp_path, model=base, train__batch_tokens=2048, train__max_length=2048)
    with pytest.raises(MemoryExhausted) as met:
        train(run, out=tmp_path / "run")
    assert re.search(r"activations, logits and workspace hold [1-3]\.\d+ GiB, 0\.0\d were predicted", met.value.found)


def test_where_nothing_grew_it_says_so_and_what_would_need_less(tmp_path, base, monkeypatch):
    prepared = ready(tiny_run(tmp_path, model=base, train__batch_tokens=2048, train__max_length=2048))
    load = prepared.load
    assert load is not None
    problem = MemoryExhausted("out of memory: x", expected="a micro-batch that fits")
    within = (exhausted.Cause(name=exhausted.STEP, predicted=100, held=90),)
    told = exhausted.explanation(problem, load, within)
    assert "nothing grew beyond its prediction" in told.found
    assert told.cure.startswith("train.micro_batch_tokens: 1024")
    tight = replace(load, device=replace(load.device, usable=load.needed - 1))
    assert "was predicted to need" in exhausted.explanation(problem, tight, within).found


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape"), memory.memory_errors():
        raise RuntimeError("shape mismatch")


def test_a_resume_with_another_setting_names_it(stopped, tmp_path):
    run, folder = stopped
    with pytest.raises(ConfigError, match=r"train\.learning_rate: 0\.005 then, 0\.001 now"):
        train(run.with_values({"train.learning_rate": 1e-3}), out=folder, resume=True)


def test_a_resume_over_other_files_shows_them_as_the_run_file_does(stopped):
    run, folder = stopped
    first = run.data.train[0].path
    other = run.with_values({"data.train": [first, {"path": "more.jsonl", "weight": 2}], "train.betas": [0.9, 0.99]})
    with pytest.raises(ConfigError) as met:
        train(other, out=folder, resume=True)
    assert f"data.train: {first} then, [{first}, {{path: more.jsonl, weight: 2.0}}] now" in met.value.found
    assert "train.betas: [0.9, 0.999] then, [0.9, 0.99] now" in met.value.found


def test_a_resume_over_other_data_or_another_base_names_which(stopped, tmp_path):
    run, folder = stopped
    data = Path(run.data.train[0].path)
    before = data.read_text()
    write_rows(data, rows_of(24, first=3))
    try:
        with pytest.raises(ConfigError, match="the data changed"):
            train(run, out=folder, resume=True)
    finally:
        data.write_text(before)
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    for checkpoint in (again / "checkpoints").iterdir():
        identity = json.loads((checkpoint / "identity.json").read_text())
        digests = json.loads((checkpoint / "manifest.json").read_text())
        (checkpoint / "identity.json").write_text(json.dumps(identity | {"the base model": "0" * 64}))
        digests["identity.json"] = files.sha256_file(checkpoint / "identity.json")
        (checkpoint / "manifest.json").write_text(json.dumps(digests))
    with pytest.raises(ConfigError, match="the base model changed"):
        train(run, out=again, resume=True)


def test_two_processes_do_not_train_in_one_folder(tmp_path, base):
    run = tiny_run(tmp_path, model=base)
    with RunFolder(path=tmp_path / "run").held():
        (tmp_path / "run" / "run.yaml").write_text(run.to_yaml())
        with pytest.raises(UsageError, match="another process"):
            train(run, out=tmp_path / "run", resume=True)
    assert train(run, out=tmp_path / "run", resume=True).steps == 8


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path, base):
    run = tiny_run(tmp_path, model=base)
    train(run, out=tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        train(run, out=tmp_path / "run")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a run"):
        train(run, out=tmp_path / "papers")


def test_a_finished_run_resumed_says_what_is_there_and_trains_nothing(tmp_path, base):
    run = tiny_run(tmp_path, model=base)
    first = train(run, out=tmp_path / "run")
    (tmp_path / "rows.jsonl").unlink()  # it may be gone by then
    listener = Listener()
    again = train(run, out=tmp_path / "run", resume=True, readers=[listener])
    assert listener.codes() == ["already-finished"]
    assert (again.steps, again.validation_loss, again.tokens) == (first.steps, first.validation_loss, first.tokens)


def test_a_dry_run_writes_nothing(tmp_path, base):
    result = train(tiny_run(tmp_path, model=base), out=tmp_path / "run", dry_run=True)
    assert result.reason == "dry run"
    assert result.preflight.passed
    assert not (tmp_path / "run").exists()


def test_killed_at_any_moment_a_run_goes_on_and_ends_as_if_never_killed(tmp_path, base):
    run = tiny_run(tmp_path, model=base, train__steps=40, train__save_every=1, train__eval_every=10)
    train(run.with_values({"train.save_every": 40}), out=tmp_path / "straight")
    out = tmp_path / "killed"
    kills = 0
    for turn, wait in enumerate((0.02, 0.11, 0.23)):
        before = _checkpoints(out)
        process = multiprocessing.get_context("fork").Process(
            target=train, args=(run,), kwargs={"out": out, "resume": turn > 0}
        )
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and _checkpoints(out) <= before and time.monotonic() < deadline:
            time.sleep(0.003)
        time.sleep(wait)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        assert _checkpoints(out) - before, "a run goes on from where it was killed"
    assert kills >= 2
    assert train(run, out=out, resume=True).steps == 40
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (out / "adapter" / name).read_bytes() == (tmp_path / "straight" / "adapter" / name).read_bytes()
    assert not leftovers(out)


def _checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("step-*")}


def test_the_command_line_shows_an_error_and_no_traceback(tmp_path, base):
    run = tiny_run(tmp_path, model=base, lora__target_modules=["q_prj"])
    (tmp_path / "run.yaml").write_text(run.to_yaml())
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from lorawise.cli import main; main()",
            "train",
            str(tmp_path / "run.yaml"),
            "-o",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "q_prj" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_a_run_killed_before_it_had_begun_is_started_in(tmp_path, base):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".run.yaml.k3j2.partial").write_text("model: ba")
    assert train(tiny_run(tmp_path, model=base), out=out).steps == 8
    assert not leftovers(out)


def test_a_run_that_another_process_made_meanwhile_is_not_written_over(tmp_path, base):
    run, out = tiny_run(tmp_path, model=base), tmp_path / "run"

    class Faster(Listener):
        def __call__(self, event: Event) -> None:
            if isinstance(event, RunStarted):
                train(run.with_values({"train.seed": 7}), out=out)

    with pytest.raises(UsageError, match="holds a run already"):
        train(run, out=out, readers=[Faster()])
    assert "seed: 7" in (out / "run.yaml").read_text()
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_leaves_no_folder(number, tmp_path, base):
    class Presses(Listener):
        def __call__(self, event: Event) -> None:
            if isinstance(event, RunStarted):
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(tmp_path, model=base), out=tmp_path / "run", readers=[Presses()])
    assert not (tmp_path / "run").exists()


def test_a_signal_that_python_lost_before_the_first_step_stops_the_run_after_it(tmp_path, base):
    class Loses(Listener):
        def __call__(self, event: Event) -> None:
            if isinstance(event, RunStarted):
                with contextlib.suppress(KeyboardInterrupt):  # as an exception inside a callback is
                    os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 1 of 8"):
        train(tiny_run(tmp_path, model=base), out=tmp_path / "run", readers=[Loses()])
    assert train(tiny_run(tmp_path, model=base), out=tmp_path / "run", resume=True).steps == 8
