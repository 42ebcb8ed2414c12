"""`train.compile`: on and off are the same run to rounding, and what stands against it is said."""

from pathlib import Path

import pytest
import torch
from tests.workbench import tiny_run
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from lorawise.models.files import resolve_model
from lorawise.report.events import StepDone
from lorawise.runfile import RunFile
from lorawise.training import compiling
from lorawise.training.inputs import read_inputs
from lorawise.training.run import train
from lorawise.training.setup import Prepared, prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own compiler


def ready(run: RunFile) -> Prepared:
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


def compiled(prepared: Prepared) -> int:
    return sum(module._compiled_call_impl is not None for module in prepared.model.modules())


def told(prepared: Prepared) -> list[str]:
    return [finding.message for finding in prepared.findings if finding.code == "not-compiled"]


def test_it_is_off_unless_asked_for_and_auto_leaves_a_cpu_alone(tmp_path: Path) -> None:
    for asked in ("off", "auto"):
        prepared = ready(tiny_run(tmp_path, train__compile=asked))
        assert compiled(prepared) == 0
        assert told(prepared) == []
    assert compiled(ready(tiny_run(tmp_path, train__compile="on", train__memory="speed"))) == 2


def test_auto_on_a_cpu_looks_for_no_compiler(tmp_path, monkeypatch) -> None:
    """To import Inductor takes a second, for nothing."""
    asked: list[object] = []
    monkeypatch.setattr(compiling, "why_not", lambda *model, **memory: asked.append(model))
    ready(tiny_run(tmp_path, train__compile="auto"))
    assert not asked


def test_without_a_compiler_layers_run_as_they_are_and_it_says_why(tmp_path, monkeypatch) -> None:
    def none_there() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_there)
    prepared = ready(tiny_run(tmp_path, train__compile="on", train__memory="speed"))
    assert compiled(prepared) == 0
    assert told(prepared) == ["layers run uncompiled: no C++ compiler is found"]


def test_layers_that_are_computed_again_are_not_compiled(tmp_path) -> None:
    prepared = ready(tiny_run(tmp_path, train__compile="on", train__memory="frugal"))
    assert compiled(prepared) == 0
    assert "frugal" in told(prepared)[0]


class Losses:
    def __init__(self) -> None:
        self.found: list[float] = []

    def __call__(self, event: object) -> None:
        if isinstance(event, StepDone):
            self.found.append(event.loss)

    def close(self) -> None: ...


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Inductor's own, of many kinds
def test_a_compiled_run_loses_what_the_plain_one_loses(tmp_path: Path) -> None:
    torch._dynamo.reset()
    found = {}
    for asked in ("off", "on"):
        run = tiny_run(tmp_path, train__compile=asked, train__memory="speed", train__steps=4, lora__dropout=0.1)
        reader = Losses()
        result = train(run, out=tmp_path / asked, readers=[reader])
        found[asked] = [*reader.found, result.validation_loss, result.base_validation_loss]
    assert found["on"] == pytest.approx(found["off"], abs=2e-5)
