"""Law 6, at the run: one big batch equals accumulated small ones, token-weighted; computing again is exact."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.workbench import tiny_folder, tiny_run

from lorawise.training.run import train


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize("packing", [True, False])
def test_split_or_whole_a_step_is_the_same(packing, tmp_path, base):
    shared = {"model": base, "train__packing": packing, "train__max_length": 64, "train__schedule": "constant"}
    train(tiny_run(tmp_path, **shared, train__micro_batch_tokens=256), out=tmp_path / "whole")
    train(tiny_run(tmp_path, **shared, train__micro_batch_tokens=64), out=tmp_path / "split")
    train(tiny_run(tmp_path, **shared, train__micro_batch_size=1), out=tmp_path / "single")
    whole = losses(tmp_path / "whole")
    assert whole[-1] < whole[0] - 0.3
    for other in ("split", "single"):
        assert losses(tmp_path / other) == pytest.approx(whole, abs=2e-5)


@pytest.mark.parametrize("mode", ["balanced", "frugal"])
def test_activations_computed_again_give_the_same_bits(mode, tmp_path, base):
    for memory in ("speed", mode):
        run = tiny_run(tmp_path, model=base, train__memory=memory, lora__dropout=0.2)
        train(run, out=tmp_path / memory)
    kept, again = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("speed", mode))
    assert all(kept[name].equal(again[name]) for name in kept)
