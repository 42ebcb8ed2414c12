"""What the README and examples show is typed here, on a tiny model: every command, the run file and the Python."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model
from tests.workbench import rows_of, tiny_folder, write_rows

import lorawise
from lorawise.cli.app import run
from lorawise.runfile import load_run_file, make_run_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README takes for granted: a base, rows, its own run file cut to two steps."""
    tiny_folder(tmp_path / "base", max_position_embeddings=2048)
    write_rows(tmp_path / "train.jsonl", rows_of(40))
    write_rows(tmp_path / "test.jsonl", rows_of(4, first=100))
    text = blocks("yaml")[0].replace("HuggingFaceTB/SmolLM2-135M-Instruct", "base").replace("epochs: 3", "steps: 2")
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_command_of_the_readme_runs(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.partition("#")[0] for block in blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$")) for line in lines if line.startswith("$ lorawise")]
    assert len(commands) >= 6
    monkeypatch.setattr("builtins.input", _end_of_input)
    for command in commands:
        if command[1] == "check":  # a check that finds errors ends with 1: tests/checking/test_readme_section.py
            continue
        arguments = [word.replace("MODEL", "base") for word in command[1:]]
        assert run([*arguments, "--json"] if "chat" not in arguments else arguments) == 0, command


def _end_of_input(_: object = None) -> str:
    raise EOFError


def test_make_knows_the_targets_of_the_readme() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_ci_runs_the_readmes_test_command_then_the_checks() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make test", "make check"]


def test_the_readmes_python_for_ones_own_loop_works() -> None:
    code = next(block for block in blocks("python") if "inject" in block)
    model = tiny_model("llama")
    ids = torch.arange(10)[None]
    before = model(ids).logits
    exec(code, {"model": model})
    assert torch.equal(model(ids).logits, before)


def test_the_readmes_python_for_runs_works(at_home: Path) -> None:
    code = next(block for block in blocks("python") if "lorawise.train" in block)
    code = code.replace("embedded:smollm2-135m-instruct", "base").replace("runs/demo/adapter", "runs/first/adapter")
    exec(code, {})
    assert (at_home / "runs/first/report.html").is_file()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_trains_on_a_tiny_model(example: Path, at_home: Path) -> None:
    asked, findings = load_run_file(example)
    assert not findings
    tree = asked.model_dump(exclude_none=True)
    tree["model"] = str(at_home / "base")
    tree["train"].pop("epochs")
    tree["train"] |= {"steps": 1, "learning_rate": 1e-2, "warmup": 0}
    tree["lora"].pop("alpha")
    short, _ = make_run_file(tree)
    assert lorawise.train(short, out=at_home / "example").steps == 1
