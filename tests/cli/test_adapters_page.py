"""Every command of docs/adapters.md is typed, in its order, on a tiny model; every method and spread is named there."""

import re
import shlex
from pathlib import Path

import pytest
from tests.peft_oracle import peft_injected, peft_saved
from tests.tiny import tiny_model
from tests.workbench import VOCABULARY, rows_of, tiny_folder, write_rows

from lorawise.cli.app import run
from lorawise.store.algebra.combine import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAWISE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    tiny_folder(tmp_path / "base")
    write_rows(tmp_path / "test.jsonl", rows_of(4))
    for seed, (name, r) in enumerate((("law", 8), ("brief", 6))):
        model = tiny_model("llama", vocab_size=VOCABULARY)
        peft_saved(
            peft_injected(model, seed=seed, r=r, lora_alpha=r, target_modules=["q_proj", "v_proj"]), tmp_path / name
        )
    return tmp_path


def test_every_command_of_the_page_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(_: object = None) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", left)
    blocks = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$")) for line in lines if line.startswith("$ lorawise")]
    assert len(commands) == len(lines) >= 15
    for command in commands:
        assert run(command[1:]) == 0, command


def test_the_page_names_every_method() -> None:
    table = PAGE.partition("## Look")[0]
    assert all(re.search(rf"`[^`]*\b{method}\b[^`]*`", table) for method in METHODS)
