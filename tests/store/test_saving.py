"""A save is whole or not there, holds what PEFT and vLLM read, and explains itself to a person."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from tests.store.samples import DOWN, Q, V, assert_identical, sample_weights

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, StorageError
from lorawise.base.files import digest_text
from lorawise.lora.weights import AdapterWeights
from lorawise.store import Provenance, load_adapter, save_adapter


def config_of(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return fields


def saved(tmp_path: Path, weights: AdapterWeights, **options: Any) -> Path:
    save_adapter(tmp_path / "adapter", weights, **({"base": "somebody/base"} | options))
    return tmp_path / "adapter"


# -- the two files PEFT reads -------------------------------------------------------------------------------------


def test_the_config_holds_the_fields_every_reader_needs(tmp_path: Path) -> None:
    fields = config_of(saved(tmp_path, sample_weights(LoraConfig(r=8, scaling=2.0, dropout=0.05))))
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somebody/base",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": [Q, V],
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "fan_in_fan_out": False,
    }
    assert {name: fields[name] for name in expected} == expected
    assert isinstance(fields["lora_alpha"], int)


def test_targets_are_the_shortest_names_that_no_other_module_shares(tmp_path: Path) -> None:
    weights = sample_weights(LoraConfig(r=2), (Q, V))
    other = "model.layers.1.self_attn.q_proj"
    assert config_of(saved(tmp_path, weights, modules=[Q, V, DOWN]))["target_modules"] == ["q_proj", "v_proj"]
    assert config_of(saved(tmp_path, weights, modules=[Q, V, other]))["target_modules"] == [
        *("0.self_attn.q_proj", "v_proj")
    ]
    assert config_of(saved(tmp_path, weights))["target_modules"] == [Q, V]


def test_tensors_are_in_pefts_keys_with_their_own_dtype(tmp_path: Path) -> None:
    folder = saved(tmp_path, sample_weights(LoraConfig(r=2), (Q,), dtype=torch.bfloat16))
    with safe_open(str(folder / "adapter_model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == [f"base_model.model.{Q}.lora_{half}.weight" for half in "AB"]
        assert file.get_slice(f"base_model.model.{Q}.lora_A.weight").get_dtype() == "BF16"


def test_tensors_that_share_their_memory_are_saved_apart(tmp_path: Path) -> None:
    held = torch.randn(4, 6)
    layers = {Q: (held[:2], torch.randn(2, 8).T), V: (held[:2], torch.randn(4, 4)[:, :2])}
    weights = AdapterWeights(config=LoraConfig(r=2), layers=layers)
    assert torch.equal(load_adapter(saved(tmp_path, weights)).layers[V][0], held[:2])


# -- what cannot be saved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "full", "says"),
    [
        ({Q: (torch.zeros(3, 6), torch.zeros(8, 3))}, {}, "its rank is 2"),
        ({Q: (torch.zeros(2, 6), torch.zeros(8, 3))}, {}, "its rank is 2"),
        ({Q: (torch.full((2, 6), float("nan")), torch.zeros(8, 2))}, {}, "NaN"),
        ({Q: (torch.zeros(2, 6), torch.zeros(8, 2))}, {"lm_head.weight": torch.zeros(2, 2)}, "lm_head.weight"),
        ({}, {}, "no tensors"),
    ],
)
def test_weights_that_could_not_be_read_back_are_not_written(tmp_path: Path, layers: Any, full: Any, says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        saved(tmp_path, AdapterWeights(config=LoraConfig(r=2), layers=layers, full=full))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("writer", ["lorawise.store.peft_format.write_safetensors", "pathlib.Path.write_text"])
def test_a_disk_that_refuses_leaves_the_adapter_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, writer: str
) -> None:
    old = sample_weights(LoraConfig(r=2))
    folder = saved(tmp_path, old)

    def refuse(path: Path, *_: object, **__: object) -> int:
        raise OSError(code, "the disk refuses", str(path))

    monkeypatch.setattr(writer, refuse)
    with pytest.raises(StorageError):
        saved(tmp_path, sample_weights(LoraConfig(r=5)))
    monkeypatch.undo()
    assert_identical(load_adapter(folder), old)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# -- the model card ------------------------------------------------------------------------------------------------


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_shows_r_alpha_and_scaling_and_what_it_was_trained_on(tmp_path: Path) -> None:
    digest = digest_text("data")
    history = Provenance(data_digest=digest)
    front, text = card_of(saved(tmp_path, sample_weights(LoraConfig(r=8, alpha=16)), provenance=history))
    assert front == {
        "base_model": "somebody/base",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lorawise"],
    }
    for line in ("| r | 8 |", "| alpha | 16 |", "| scaling | 2 = alpha / r |", f"- data: `sha256:{digest}`"):
        assert line in text
    for loader in ("lorawise.load", "PeftModel.from_pretrained", "vllm serve", "--max-lora-rank 8"):
        assert loader in text


def test_the_card_says_why_vllm_does_not_serve_it(tmp_path: Path) -> None:
    weights = sample_weights(LoraConfig(r=8, scaling=2.0, rank_pattern={"q_proj": 4}))
    _, text = card_of(saved(tmp_path, weights))
    assert "vllm serve" not in text
    assert "differ in scaling" in text


@pytest.mark.parametrize("base", ["/home/me/models/base", "x\n---\nlicense: mit", 'a"b', ""])
def test_a_base_that_is_no_hub_id_stays_out_of_the_front_matter(tmp_path: Path, base: str) -> None:
    front, _ = card_of(saved(tmp_path, sample_weights(LoraConfig(r=2)), base=base))
    assert set(front) == {"library_name", "pipeline_tag", "tags"}
