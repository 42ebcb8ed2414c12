import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.saved_models import VOCABULARY, save_tiny
from tests.tiny import FAMILIES

from lorawise.base.errors import ModelError, TensorFileError
from lorawise.base.roles import role_of
from lorawise.models import dtypes
from lorawise.models import files as files_module
from lorawise.models.open import ModelFiles, open_model, resolve_model
from lorawise.models.window import positions_of

IDS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_tiny(folder)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "sharded", shard="20KB")
    return tmp_path / "sharded"


def edit_config(folder: Path, **changes: object) -> ModelFiles:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return ModelFiles(source=str(folder), folder=folder, kind="folder")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_opens_frozen_with_the_logits_it_had(family: str, tmp_path: Path) -> None:
    saved = save_tiny(tmp_path, family)
    model = open_model(resolve_model(tmp_path))
    assert type(model) is type(saved)
    assert not model.training
    assert not model.config.use_cache
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, saved(IDS).logits)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "falcon"])
def test_train_mode_computes_what_eval_mode_does_because_the_base_dropout_is_off(family: str, tmp_path: Path) -> None:
    drops = {
        "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
        "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.9},
        "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    }[family]
    save_tiny(tmp_path, family, **drops)
    model = open_model(resolve_model(tmp_path))
    with torch.no_grad():
        assert torch.equal(model.train()(IDS).logits, model.eval()(IDS).logits)


def test_a_folder_is_resolved_without_torch_or_transformers(llama: Path) -> None:
    code = (
        "import sys; from lorawise.models.files import resolve_model; "
        f"files = resolve_model({str(llama)!r}); assert len(files.digest) == 64; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_sharded_folder_opens_and_names_the_shards_it_lacks(sharded: Path) -> None:
    assert len(files_module.weight_files(sharded)) > 2
    open_model(resolve_model(sharded))
    first = files_module.weight_files(sharded)[0]
    first.unlink()
    with pytest.raises(ModelError, match=first.name):
        resolve_model(sharded)


def test_a_tensor_that_the_index_promises_and_no_shard_holds_is_named(sharded: Path) -> None:
    shard = files_module.weight_files(sharded)[0]
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file({**tensors, "other": torch.ones(1)}, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=lost):
        resolve_model(sharded)


def test_an_index_may_not_point_outside_its_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="outside"):
        resolve_model(sharded)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_torn_file_is_found_before_anything_is_loaded(keep: int, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TensorFileError, match="torn"):
        resolve_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"(?s)safetensors.*run code"):
        resolve_model(tmp_path)


def test_an_adapter_given_as_a_base_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="this is an adapter"):
        resolve_model(tmp_path)


def test_an_adapter_beside_a_base_is_not_put_into_it(tmp_path: Path) -> None:
    """transformers would load it where PEFT is installed, and the base would not be the base."""
    save_tiny(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter beside the base model"):
        open_model(resolve_model(tmp_path))


@pytest.mark.parametrize("content", [[], {"x": 3}, "model.safetensors"])
def test_an_index_that_maps_nothing_is_refused(content: object, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))
    with pytest.raises(ModelError, match="holds no weight_map"):
        resolve_model(tmp_path)


def test_a_head_for_other_classes_gives_way_to_a_fresh_one(llama: Path, tmp_path: Path) -> None:
    open_model(resolve_model(llama), labels=["a", "b"], seed=3).save_pretrained(tmp_path)
    model = open_model(resolve_model(tmp_path), labels=["x", "y", "z"], seed=1)
    fresh = open_model(resolve_model(llama), labels=["x", "y", "z"], seed=1)
    assert torch.equal(model.score.weight, fresh.score.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_with_a_table_of_positions_are_known(family: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path, family)
    tables = [name for name, _ in model.named_modules() if role_of(name) == "position"]
    positions = positions_of(resolve_model(tmp_path).config)
    assert (positions is not None) == bool(tables)
    assert positions in (None, model.config.max_position_embeddings)


@pytest.mark.parametrize("source", ["./nowhere", "~/nowhere/at/all", "a/b/c", "missing.gguf"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(source: str) -> None:
    with pytest.raises(ModelError, match="there is no model at"):
        resolve_model(source)


def test_an_unreachable_hub_is_said_with_its_cure() -> None:
    lines: list[str] = []
    with pytest.raises(ModelError, match=r"(?s)cannot be reached.*embedded:smollm2-135m-instruct"):
        resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct", progress=lines.append)
    assert lines == ["fetching HuggingFaceTB/SmolLM2-135M-Instruct from the model hub"]


def test_a_cached_snapshot_is_used_when_the_hub_is_away(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in llama.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    files = resolve_model("org/tiny")
    assert (files.kind, files.folder) == ("hub", snapshot)


def test_an_unknown_embedded_model_names_the_known_one() -> None:
    with pytest.raises(ModelError, match="did you mean 'embedded:smollm2-135m-instruct'"):
        resolve_model("embedded:smollm2-135m")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_config": {}}, "images"),
        ({"is_encoder_decoder": True}, "not a decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "not a decoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq"),
        ({"quantization_config": "gptq"}, "quantised with gptq"),
        ({"num_attention_heads": 0}, "cannot open a model of type 'llama'"),
        ({"hidden_size": "wide"}, "cannot open a model of type 'llama'"),
        ({"max_position_embeddings": None}, "cannot open a model of type 'llama'"),
        ({"intermediate_size": 40}, r"down_proj.weight \(32, 48\) is \(32, 40\) there"),
        ({"model_type": "never_heard_of"}, "never_heard_of"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}, "code that comes with a model is never run"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with pytest.raises(ModelError, match=words):
        open_model(edit_config(tmp_path, **changes))


def test_a_checkpoint_without_all_its_tensors_is_refused_with_the_list(tmp_path: Path) -> None:
    save_tiny(tmp_path, tie_word_embeddings=False)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        open_model(resolve_model(tmp_path))


def test_a_fresh_head_follows_from_its_seed_alone(llama: Path) -> None:
    files, labels = resolve_model(llama), ["bad", "good", "odd"]
    before = torch.get_rng_state()
    first = open_model(files, labels=labels, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again, other = open_model(files, labels=labels, seed=1), open_model(files, labels=labels, seed=2)
    assert first.score.weight.shape == (3, 32)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.config.id2label == {0: "bad", 1: "good", 2: "odd"}
    assert not first.score.weight.requires_grad


def test_a_trained_head_is_kept(llama: Path, tmp_path: Path) -> None:
    model = open_model(resolve_model(llama), labels=["a", "b"], seed=3)
    model.save_pretrained(tmp_path)
    assert torch.equal(open_model(resolve_model(tmp_path), labels=["a", "b"]).score.weight, model.score.weight)


def test_a_classifier_has_a_pad_token_inside_the_vocabulary(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    model = open_model(edit_config(tmp_path, pad_token_id=None, eos_token_id=[7, 8]), labels=["a", "b"])
    assert model.config.pad_token_id == 7
    model = open_model(edit_config(tmp_path, pad_token_id=VOCABULARY, eos_token_id=None), labels=["a", "b"])
    assert model.config.pad_token_id == 0


@pytest.mark.parametrize("labels", [[], ["one"], ["same", "same"]])
def test_labels_that_tell_nothing_apart_are_refused(labels: list[str], llama: Path) -> None:
    with pytest.raises(ModelError, match="labels"):
        open_model(resolve_model(llama), labels=labels)


def test_the_digest_is_of_the_weights_and_not_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path)
    before = resolve_model(tmp_path).digest
    edit_config(tmp_path, transformers_version="other")
    assert resolve_model(tmp_path).digest == before
    monkeypatch.setattr(files_module, "FULL_DIGEST_LIMIT", 0)
    sampled = resolve_model(tmp_path).digest
    assert sampled != before
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert resolve_model(tmp_path).digest != sampled
    monkeypatch.undo()
    assert resolve_model(tmp_path).digest != before


@pytest.mark.parametrize(
    ("stored", "fast", "chosen"),
    [
        ("float32", True, "float32"),
        ("float32", False, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
        ("float16", True, "bfloat16"),
        ("float16", False, "float32"),
    ],
)
def test_auto_is_the_checkpoints_type_unless_the_cpu_only_emulates_it(
    stored: str, fast: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path, dtype=getattr(torch, stored))
    monkeypatch.setattr(dtypes, "cpu_has_fast_bfloat16", lambda: fast)
    choice = dtypes.choose_dtype(tmp_path)
    assert choice.name == chosen
    assert choice.reason
    assert open_model(resolve_model(tmp_path)).dtype == choice.dtype
    assert dtypes.choose_dtype(tmp_path, "float16").name == "float16"


def test_an_unknown_dtype_says_the_nearest(llama: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'bfloat16'"):
        open_model(resolve_model(llama), dtype="bf16loat")
