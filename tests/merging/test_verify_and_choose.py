"""verify tells a merge from a look-alike; NF4 is bitsandbytes' own; --choose measures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.peft_oracle import peft_injected, peft_saved
from tests.workbench import tiny_folder
from transformers import AutoModelForCausalLM

from lorawise.cli.app import run
from lorawise.cli.merge import weights_of
from lorawise.merging.choose import choose
from lorawise.merging.nf4 import round_trip
from lorawise.merging.verify import verify

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    tiny_folder(folder / "base", hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    peft_saved(peft_injected(model, r=4, target_modules="all-linear"), folder / "adapter")
    assert run(["merge", str(folder / "base"), str(folder / "adapter"), "-o", str(folder / "merged"), "--json"]) == 0
    return folder


def test_a_merge_is_the_same_and_the_base_is_not_taken_for_it(home: Path, capsys: Capture) -> None:
    same = verify(home / "base", home / "adapter", home / "merged")
    assert same.same
    assert same.kl < 1e-8 < same.kl_from_base
    assert not same.findings
    arguments = ["verify", str(home / "base"), str(home / "adapter")]
    assert run([*arguments, str(home / "base"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["same"]
    assert told["kl"] == pytest.approx(told["kl_from_base"])
    assert [finding["code"] for finding in told["findings"]] == ["other-is-the-base"]
    assert run([*arguments, str(home / "adapter")]) == 0
    assert capsys.readouterr().out.startswith("the same")


def test_merge_can_end_with_verify(home: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["merge", str(home / "base"), str(home / "adapter"), "-o", str(tmp_path / "out"), "--verify"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verify"]["same"]
    assert set(document) >= {"path", "retention", "error", "layers", "seconds", "peak_memory"}
    assert run([*arguments]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_table_names_the_layers_and_the_total(home: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["merge", str(home / "base"), str(home / "adapter"), "-o", str(tmp_path / "out")]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["retention", "error"]
    assert lines[-1].split()[0] == "all"
    assert any("model.layers.1.mlp.down_proj" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_folders_carry_weights(tmp_path: Path) -> None:
    (tmp_path / "a=2").mkdir()
    odd = str(tmp_path / "a=2")
    assert weights_of(["x", "y=0.5", "z=-1", odd]) == {"x": 1.0, "y": 0.5, "z": -1.0, odd: 1.0}
    for wrong in (["x=much"], ["x", "x=2"]):
        with pytest.raises(ValueError, match="x"):
            weights_of(wrong)


@pytest.mark.parametrize("shape", [(64, 64), (30, 128), (192, 576)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nf4_is_bitsandbytes_own(shape: tuple[int, int], dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05).to(dtype)
    for double, allowed in ((False, 0), (True, 0.01)):
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
        theirs = functional.dequantize_4bit(packed, state)
        ours = torch.from_numpy(round_trip(weight.float().numpy(), "nf4-double" if double else "nf4")).to(dtype)
        assert (theirs != ours).float().mean() <= allowed if dtype == torch.bfloat16 or not double else True
        torch.testing.assert_close(ours, theirs, atol=2e-3 if double else 0, rtol=0)


def test_nf4_of_any_shape_stays_within_half_a_level() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 45)).astype(np.float32)
    restored = round_trip(weight, "nf4")
    assert restored.shape == weight.shape
    assert np.abs(restored - weight).max() <= 0.16 * np.abs(weight).max()
    assert np.array_equal(round_trip(np.zeros((3, 64), np.float32), "nf4-double"), np.zeros((3, 64)))


def test_choose_keeps_what_is_nearer_to_the_nf4_run(home: Path, tmp_path: Path, capsys: Capture) -> None:
    made = choose(home / "base", home / "adapter", tmp_path / "out")
    assert set(made.kl) == {"stored", "nf4"}
    assert made.kl["nf4"] < 1e-8 < made.kl["stored"]
    assert made.merged.into == "nf4"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    arguments = ["merge", str(home / "base"), str(home / "adapter"), "-o", str(tmp_path / "cli"), "--choose"]
    assert run(arguments) == 0
    assert "merged into the nf4 weights" in capsys.readouterr().out


def test_only_linear_layers_are_quantised(home: Path, tmp_path: Path) -> None:
    assert run(["merge", str(home / "base"), str(home / "adapter"), "-o", str(tmp_path / "o"), "--into", "nf4"]) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (home / "base", tmp_path / "o"))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= kept
    assert not any("proj" in name for name in kept)
