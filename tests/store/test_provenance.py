"""Where an adapter came from is written whole, read back verified, and never decides what the adapter computes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.store.samples import Q, V, assert_identical, sample_weights

import lorawise
from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, ConfigError
from lorawise.base.files import digest_text
from lorawise.lora.weights import AdapterWeights
from lorawise.store import Provenance, adapter_digest, load_adapter, read_provenance, save_adapter

D = [digest_text(str(i)) for i in range(6)]
HISTORY = Provenance(
    base="somebody/base",
    base_digest=D[0],
    tokenizer_digest=D[1],
    template_digest=D[2],
    data_digest=D[3],
    run={"train": {"learning_rate": 2e-4, "epochs": 3}, "task": "chat"},
    parents=(D[4], D[5]),
)


@pytest.fixture
def weights() -> AdapterWeights:
    return sample_weights(LoraConfig(r=2, scaling=0.7, target_modules="qv"))


@pytest.fixture
def folder(tmp_path: Path, weights: AdapterWeights) -> Path:
    save_adapter(tmp_path / "adapter", weights, base="somebody/base", provenance=HISTORY)
    return tmp_path / "adapter"


def edit(folder: Path, change: Any) -> None:
    path = folder / "provenance.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_history_comes_back_as_it_was_written(folder: Path, weights: AdapterWeights) -> None:
    assert read_provenance(folder, load_adapter(folder)) == HISTORY
    record = json.loads((folder / "provenance.json").read_text())
    assert record["adapter"]["digest"] == adapter_digest(weights)
    assert record["adapter"]["setting"]["target_modules"] == "qv"


def test_the_versions_and_the_time_are_filled_in() -> None:
    made = Provenance()
    assert made.versions["lorawise"] == lorawise.__version__
    assert made.versions["torch"] == torch.__version__
    assert set(made.versions) == {"lorawise", "torch", "transformers", "python"}
    assert made.created.endswith("+00:00")


def test_an_adapter_without_history_has_none(folder: Path) -> None:
    (folder / "provenance.json").unlink()
    assert read_provenance(folder, load_adapter(folder)) is None


def test_a_history_of_other_tensors_is_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{Q}.lora_A.weight"][0, 0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = load_adapter(folder)
    with pytest.raises(AdapterError, match="changed since"):
        read_provenance(folder, loaded)


def test_pefts_file_decides_when_the_record_says_otherwise(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 8}))
    loaded = load_adapter(folder)
    assert loaded.config.scaling == 4.0
    with pytest.raises(AdapterError, match="changed since"):
        read_provenance(folder, loaded)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.clear(), "JSON object"),
        (lambda r: r.pop("adapter"), "adapter"),
        (lambda r: r["adapter"].update(setting=[1]), "setting"),
        (lambda r: r["adapter"]["setting"].update(r="two"), "'r'"),
        (lambda r: r["adapter"]["setting"].update(r=-1), "r=-1"),
        (lambda r: r["adapter"]["setting"].update(target_modules=7), "target_modules"),
        (lambda r: r["adapter"]["setting"].update(rank_pattern=[1]), "rank_pattern"),
        (lambda r: r["adapter"]["setting"].update(rank_pattern={"(": 2}), "regular expression"),
        (lambda r: r["adapter"]["setting"].update(rank_pattern={"q": "x"}), "rank_pattern"),
        (lambda r: r["adapter"]["setting"].update(layers=["a"]), "layers"),
        (lambda r: r["adapter"]["setting"].update(tomorrow=1), "tomorrow"),
    ],
)
def test_a_torn_setting_is_refused_on_loading(folder: Path, change: Any, says: str) -> None:
    edit(folder, change)
    with pytest.raises(AdapterError, match=says) as caught:
        load_adapter(folder)
    assert "provenance.json" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("base"),
        lambda r: r.update(format=2),
        lambda r: r["base"].update(digest="../x"),
        lambda r: r["data"].update(digest=5),
        lambda r: r.update(parents="abc"),
        lambda r: r.update(parents=[3]),
        lambda r: r.update(run=None),
        lambda r: r["versions"].update(torch=2),
        lambda r: r.pop("created"),
        lambda r: r["adapter"].pop("digest"),
    ],
)
def test_a_torn_history_is_refused_on_reading(folder: Path, change: Any) -> None:
    edit(folder, change)
    weights = load_adapter(folder)
    with pytest.raises(AdapterError) as caught:
        read_provenance(folder, weights)
    assert caught.value.cure


def test_a_digest_that_is_none_and_a_run_that_is_no_json_are_refused_at_birth() -> None:
    with pytest.raises(ConfigError, match="data_digest") as caught:
        Provenance(data_digest="latest", run={"a": object()}, parents=("x",))
    assert "run holds" in caught.value.found
    assert "parents" in caught.value.found


def test_the_digest_speaks_of_what_is_computed_and_of_nothing_else(weights: AdapterWeights) -> None:
    digest = adapter_digest(weights)
    config = weights.config
    for harmless in ({"dropout": 0.5}, {"seed": 9}, {"target_modules": ("q_proj", "v_proj")}, {"init": "gaussian"}):
        assert adapter_digest(replace(weights, config=config.replace(**harmless))) == digest
    a, b = weights.layers[Q]
    others = [
        replace(weights, config=config.replace(scaling=0.8)),
        replace(weights, config=config.replace(alpha_pattern={"q_proj": 3})),
        replace(weights, layers={V: weights.layers[V]}),
        replace(weights, layers={**weights.layers, Q: (a + 0.01, b)}),
        replace(weights, layers={**weights.layers, Q: (a.double(), b.double())}),
        replace(weights, layers={**weights.layers, Q: (a.reshape(6, 2).T.reshape(2, 6), b)}),
        replace(weights, full={"score.weight": torch.zeros(2, 2)}),
        replace(weights, task="SEQ_CLS"),
    ]
    halves = [replace(weights, layers={Q: (a.to(d) * 0, b.to(d) * 0)}) for d in (torch.float16, torch.bfloat16)]
    assert adapter_digest(halves[0]) != adapter_digest(halves[1])
    assert len({digest, *map(adapter_digest, others)}) == len(others) + 1


def test_the_setting_comes_back_with_its_scaling_to_the_last_bit(tmp_path: Path) -> None:
    for scaling in (0.1, 1 / 3, 1.9999999999, 2**0.5):
        weights = sample_weights(LoraConfig(r=3, scaling=scaling, target_modules="attention", seed=7))
        save_adapter(tmp_path / "adapter", weights, base="b")
        assert_identical(load_adapter(tmp_path / "adapter"), weights)
