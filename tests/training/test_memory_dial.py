"""`train.memory`: every position gives the same loss and gradients to the bit, each holds less than the one before, and
`auto` is the fastest that is predicted to fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from tests.planning.shapes import config_of
from tests.workbench import tiny_folder, tiny_run

from lorawise.lora.config import LoraConfig
from lorawise.models.files import resolve_model
from lorawise.planning.memory import Workload
from lorawise.runfile import RunFile
from lorawise.training import fitting, memory
from lorawise.training.inputs import read_inputs
from lorawise.training.setup import Prepared, prepare
from lorawise.training.trace import trace
from lorawise.training.trace.ledger import Ledger

MODES = ("speed", "balanced", "frugal", "offload")
CASES: dict[str, dict[str, Any]] = {
    "packed, dropout": {"lora__dropout": 0.2},
    "padded": {"train__packing": False, "train__batch_size": 4},
    "accumulated": {"train__micro_batch_tokens": 64, "train__max_length": 60},
    "nf4": {"base__dtype": "nf4", "lora__dropout": 0.1},
    "bf16": {"base__dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "base", num_hidden_layers=4)


def ready(run: RunFile) -> Prepared:
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


def stepped(prepared: Prepared) -> tuple[tuple[float, ...], list[torch.Tensor]]:
    """The loss and the gradients of the second step: after the first, A's are not zero."""
    prepared.trainer.step(0)
    losses = prepared.trainer.accumulate(1, prepared.trainer.plan.step(1))
    return losses, [parameter.grad.clone() for _, parameter in prepared.adapters.trainable()]


@pytest.mark.parametrize("case", CASES)
def test_every_position_gives_the_same_loss_and_gradients_to_the_bit(case: str, tmp_path: Path, base: Path) -> None:
    found = {mode: stepped(ready(tiny_run(tmp_path, model=base, train__memory=mode, **CASES[case]))) for mode in MODES}
    losses, gradients = found["speed"]
    assert all(gradient.any() for gradient in gradients)
    for mode in MODES[1:]:
        assert found[mode][0] == losses
        assert all(mine.equal(its) for mine, its in zip(found[mode][1], gradients, strict=True)), mode


def test_what_offload_sends_to_the_host_is_one_input_a_layer_and_comes_back(tmp_path, base, monkeypatch) -> None:
    """The transport as on an accelerator, with plain memory in place of pinned, which a CPU has no need of."""
    run = tiny_run(tmp_path, model=base, train__memory="offload")
    sent: list[torch.Tensor] = []

    def to_host(*, pin_memory: bool, device_type: str) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(lambda t: (sent.append(t), t.clone())[1], lambda t: t.clone())

    monkeypatch.setattr(transformers.modeling_utils, "save_on_cpu", to_host)
    prepared = ready(tiny_run(tmp_path, model=base, train__memory="speed"))
    prepared.model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=1, offload=True)
    micros = prepared.trainer.plan.step(0)
    found = stepped(prepared)
    wide = [t for t in sent if t.is_floating_point() and t.shape[-1] == 32 and t.requires_grad]
    assert len(wide) == 4 * 2 * len(micros), "four layers' inputs, in two steps"
    expected = stepped(ready(run))
    assert found[0] == expected[0]
    assert all(mine.equal(its) for mine, its in zip(found[1], expected[1], strict=True))


def test_each_position_holds_less_than_the_one_before(tmp_path: Path, base: Path) -> None:
    peaks = {}
    for mode in ("speed", "balanced", "frugal"):
        prepared = ready(tiny_run(tmp_path, model=base, train__memory=mode))
        ledger = Ledger()
        with ledger, ledger.during("step", phase="step"):
            prepared.trainer.accumulate(0, prepared.trainer.plan.step(0))
        peaks[mode] = ledger.peak.bytes
    assert peaks["speed"] > 1.2 * peaks["balanced"] > 1.2 * peaks["frugal"]


def test_so_it_is_for_a_model_of_size_by_the_trace() -> None:
    model, work = config_of("llama"), Workload(tokens=4096)
    peaks = [trace(model, LoraConfig(r=16), workload=work, mode=mode).memory.allocated for mode in MODES[:3]]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3


def free(monkeypatch: pytest.MonkeyPatch, bytes_free: int) -> None:
    """A machine on which the run may have this much beside its base."""
    monkeypatch.setattr(fitting, "free_memory", lambda _: int(bytes_free / memory.SHARE))


def test_auto_takes_the_fastest_that_is_predicted_to_fit(tmp_path, base, monkeypatch) -> None:
    run = tiny_run(tmp_path, model=base, train__batch_tokens=2048, train__max_length=2048)
    settled = ready(run)
    assert (settled.run.train.memory, settled.run.train.micro_batch_tokens) == ("speed", 2048)
    assert settled.load is not None
    held = settled.load.device.usable - int(memory.SHARE * memory.free_memory(torch.device("cpu")))
    assert held < settled.load.needed
    fixed, chosen = run.with_values({"train.micro_batch_tokens": 2048}), []
    for mode in ("speed", "balanced", "frugal"):
        free(monkeypatch, replace(settled.load, mode=mode).needed - sum(_nbytes(settled)) + 4096)
        chosen.append(ready(fixed).run.train.memory)
    assert chosen == ["speed", "balanced", "frugal"]
    free(monkeypatch, replace(settled.load, tokens=1024).needed)
    assert ready(run).run.train.memory == "speed", "fewer tokens at once cost less than computing twice"
    free(monkeypatch, 1)
    tight = ready(run)
    assert tight.run.train.memory == "frugal"
    assert tight.run.train.micro_batch_tokens < 2048
    assert [finding.code for finding in tight.findings].count("memory-predicted") == 1


def _nbytes(prepared: Prepared) -> list[int]:
    from lorawise.lora.wrapping import base_parameters

    tensors = [parameter for _, parameter in base_parameters(prepared.model)]
    return [t.untyped_storage().nbytes() for t in (*tensors, *prepared.model.buffers())]


def test_what_a_person_chose_is_kept(tmp_path, base, monkeypatch) -> None:
    free(monkeypatch, 1)
    chosen = ready(tiny_run(tmp_path, model=base, train__memory="speed", train__micro_batch_tokens=128)).run.train
    assert (chosen.memory, chosen.micro_batch_tokens) == ("speed", 128)
