"""GGUF adapters: what the file says of itself, how the alpha is chosen, and what is refused before a byte."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.exporting.test_export import CONFIG
from tests.store.made_adapters import NAMES, draw, saved

from lorawise import LoraConfig
from lorawise.base.errors import ConfigError, LorawiseError, StorageError
from lorawise.cli.app import run
from lorawise.exporting.export import export
from lorawise.exporting.exporters import Exported, Options
from lorawise.store.algebra.result import Source


def base(folder: Path, **changes: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return str(folder)


def exported(tmp_path: Path, config: LoraConfig, **options: Any) -> Exported:
    source = saved(tmp_path / "own", draw(config, NAMES, torch.float32, 3))
    return export(source, "gguf", tmp_path / "out", Options(model=base(tmp_path / "base"), **options))


def read(tmp_path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    file = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    return {n: f.contents() for n, f in file.fields.items()}, {t.name: t for t in file.tensors}


def test_the_file_says_what_llama_cpp_asks(tmp_path: Path) -> None:
    done = exported(tmp_path, LoraConfig(r=8, alpha=16))
    settings, tensors = read(tmp_path)
    assert settings["general.architecture"] == "llama"
    assert settings["general.type"] == "adapter"
    assert settings["adapter.type"] == "lora"
    assert settings["adapter.lora.alpha"] == 16.0
    assert settings["lorawise.adapter_digest"] == Source.open(tmp_path / "own").digest
    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F32"}
    assert (done.files, done.rounded) == (("adapter.gguf",), False)
    assert done.flags == (f"--lora {tmp_path / 'out' / 'adapter.gguf'}",)


@pytest.mark.parametrize(
    ("config", "alpha", "rounded"),
    [
        (LoraConfig(r=8, scaling=1.3), 1.3 * 8, False),
        (LoraConfig(r=16, alpha=16, rslora=True), 64.0, False),
        (LoraConfig(r=12, alpha=16, rslora=True), 16 * 12**0.5, False),
        (LoraConfig(r=8, alpha=16, rank_pattern={"down_proj": 4}), 16.0, False),  # PEFT: alpha stays, scaling grows
        (LoraConfig(r=8, alpha=16, alpha_pattern={NAMES[3]: 32.0}), 16.0, False),
        (LoraConfig(r=8, alpha=16, alpha_pattern={NAMES[3]: 5.0}), 16.0, True),
    ],
)
def test_alpha_is_the_one_that_leaves_most_numbers_alone(
    config: LoraConfig, alpha: float, rounded: bool, tmp_path: Path
) -> None:
    done = exported(tmp_path, config)
    settings, tensors = read(tmp_path)
    assert settings["adapter.lora.alpha"] == pytest.approx(alpha, rel=1e-7)
    assert done.rounded == rounded
    assert done.error < 2e-7
    own = draw(config, NAMES, torch.float32, 3).layers[NAMES[2]]
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_a"].data, own[0].numpy())
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_b"].data, own[1].numpy())


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_a_narrower_type_is_written_when_asked_for(dtype: str, kind: str, tmp_path: Path) -> None:
    done = exported(tmp_path, LoraConfig(r=8, scaling=2.0), dtype=dtype)
    assert {tensor.tensor_type.name for tensor in read(tmp_path)[1].values()} == {kind}
    assert 1e-5 < done.error < 1e-2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 2}, "layers.10.mlp.down_proj: the base has no such module"),
        ({"num_attention_heads": 4}, "q_proj: the adapter is 24 → 40, the base 24 → 32"),
        ({"model_type": "opt", "ffn_dim": 80, "word_embed_proj_dim": 24}, "'opt'"),
    ],
)
def test_another_base_is_refused_before_a_byte(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "own", draw(LoraConfig(r=4), NAMES, torch.float32, 0))
    with pytest.raises(LorawiseError) as caught:
        export(source, "gguf", tmp_path / "out", Options(model=base(tmp_path / "base", **changes)))
    assert told in caught.value.found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "own"]


def test_a_base_that_is_not_here_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "own", draw(LoraConfig(r=4), NAMES, torch.float32, 0))
    assert run(["export", str(tmp_path / "own"), "--to", "gguf", "-o", str(tmp_path / "out"), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert "somebody/base" in told["found"]
    assert "--model" in told["cure"]
    with pytest.raises(ConfigError, match="no dtype of a GGUF adapter"):
        exported(tmp_path / "b", LoraConfig(r=4), dtype="float64")


def test_a_head_is_taken_where_it_has_weights_of_its_own(tmp_path: Path) -> None:
    weights = draw(LoraConfig(r=4, scaling=1.0), NAMES[:1], torch.float32, 0)
    head = (torch.randn(4, 24), torch.randn(32, 4))
    source = saved(tmp_path / "own", replace(weights, layers={**weights.layers, "lm_head": head}))
    export(source, "gguf", tmp_path / "out", Options(model=base(tmp_path / "base")))
    assert np.array_equal(read(tmp_path)[1]["output.weight.lora_b"].data, head[1].numpy())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_padding", full)
    with pytest.raises(StorageError, match="no space left"):
        exported(tmp_path, LoraConfig(r=8, scaling=2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "own"]
