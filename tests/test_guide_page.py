"""docs/guide.md answers the guide's code block by block: every block is typed here, in order, on a tiny model."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from tests.peft_oracle import quiet_peft
from tests.workbench import rows_of, tiny_folder, tiny_run, write_rows
from transformers import AutoModelForCausalLM

import lorawise
from lorawise.cli.app import run
from lorawise.runfile import load_run_file, make_run_file

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
IDS = torch.arange(4, 24)[None]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> dict[str, object]:
    """The page's names after all its Python; the folder it was typed in is under `home`."""
    home = tmp_path_factory.mktemp("guide")
    base = tiny_folder(home / "base")
    names: dict[str, object] = {"home": home, "batches": [{"input_ids": IDS, "labels": IDS}] * 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LORAWISE_CACHE", str(home / "cache"))
        for i, name in enumerate(("legal", "medical")):
            done = lorawise.train(tiny_run(home, model=base, train__seed=i, train__steps=3), out=home / name)
            shutil.copytree(done.adapter, home / f"adapter-{name}")
        for code in blocks("python"):
            exec(code, names)
    return names


def test_every_python_block_runs_and_says_what_its_comments_say(typed):
    assert (str(typed["domain"]), str(typed["domain"].replace(r=8))) == (
        "r=16 alpha=32 scaling=2",
        "r=8 alpha=16 scaling=2",
    )
    assert [typed[name].scaling for name in ("neutral", "domain", "community")] == [1.0, 2.0, 2.0]


def test_the_loop_moved_the_adapter_and_peft_reads_it(typed):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(typed["home"] / "base")
    before = base(IDS).logits
    with quiet_peft():
        theirs = PeftModel.from_pretrained(base, typed["home"] / "my-lora-adapter")(IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(typed["home"] / "merged-model")(IDS).logits
    in_memory = AutoModelForCausalLM.from_pretrained(typed["home"] / "merged-in-memory")(IDS).logits
    assert (theirs - before).abs().max() > 1e-4
    torch.testing.assert_close(merged, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(in_memory, theirs, rtol=1e-4, atol=1e-5)


def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    tiny_folder(tmp_path / "base", max_position_embeddings=2048)
    write_rows(tmp_path / "train.jsonl", rows_of(40))
    write_rows(tmp_path / "test.jsonl", rows_of(4, first=100))
    text = (ROOT / "examples/guide.yaml").read_text(encoding="utf-8")
    text = text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "base").replace("epochs: 3", "steps: 2")
    text = text.replace("warmup: 100", "warmup: 1")
    text = re.sub(r"\S+/(train|validation)\.jsonl", lambda m: "train.jsonl" if m[1] == "train" else "test.jsonl", text)
    (tmp_path / "guide.yaml").write_text(text, encoding="utf-8")
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert len(lines) >= 2
    for line in lines:
        arguments = shlex.split(line.removeprefix("$ lorawise ").replace("MODEL", "base"))
        assert run([*arguments, "--json"]) == 0, line


def test_the_scripts_run_file_says_what_the_script_says():
    asked, findings = load_run_file(ROOT / "examples/guide.yaml")
    assert not findings
    assert asked.lora_config() == lorawise.LoraConfig(r=16, alpha=32, dropout=0.05, target_modules="attention")
    train = asked.train
    assert (train.epochs, train.batch_size, train.micro_batch_size, train.learning_rate) == (3, 16, 4, 2e-4)
    assert (train.warmup, train.schedule, train.eval_every, train.save_every) == (100, "linear", "epoch", "epoch")
    tree = asked.model_dump(exclude_none=True)
    tree["lora"].pop("alpha")
    assert make_run_file(tree)[0] == asked
