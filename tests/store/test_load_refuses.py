"""An adapter folder is input from strangers: whatever does not hold is an error with found, expected and cure."""

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.peft_oracle import peft_injected, peft_saved, quiet_peft
from tests.store.samples import Q, V, sample_weights
from tests.tiny import tiny_model

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError
from lorawise.lora import attach, inject
from lorawise.store import load_adapter, save_adapter

KEY = f"base_model.model.{Q}.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter without our record, as PEFT would leave it."""
    save_adapter(tmp_path / "adapter", sample_weights(LoraConfig(r=2, target_modules=("q_proj", "v_proj"))), base="b")
    (tmp_path / "adapter" / "provenance.json").unlink()
    return tmp_path / "adapter"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert caught.value.found
    assert caught.value.cure
    return caught.value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias on lora_B"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "mlp.experts.gate_up_proj, no tensor does"),
        ({"trainable_token_indices": [3]}, "rows of the embedding"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "replicated layers"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"use_bdlora": {"a": 1}}, "BD-LoRA"),
        ({"arrow_config": {"a": 1}}, "Arrow"),
        ({"monteclora_config": {"a": 1}}, "MonteCLoRA"),
        ({"kasa_config": {"a": 1}}, "KaSA"),
        ({"ensure_weight_tying": True}, "tied layers"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "changed the base weights"),
        ({"init_lora_weights": "loftq"}, "LoftQ base"),
        ({"init_lora_weights": "tomorrow"}, "does not know"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"peft_type": "IA3"}, "merge_and_unload"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "SEQ_2_SEQ_LM"),
        ({"an_option_of_2027": {"on": True}}, "an_option_of_2027"),
    ],
)
def test_what_we_cannot_represent_is_refused_by_name(folder: Path, changes: dict[str, Any], says: str) -> None:
    edit(folder, **changes)
    assert says in str(refusal(folder))


def test_no_option_of_this_peft_is_unknown_to_us() -> None:
    """A new field of PEFT is either refused by name or known to change nothing: this fails when PEFT grows one."""
    from lorawise.store.peft_config import _FIELDS, _IRRELEVANT, _UNSUPPORTED

    fields = set(peft.LoraConfig(r=2, target_modules=["q_proj"]).to_dict())
    assert fields <= set(_FIELDS) | set(_IRRELEVANT) | set(_UNSUPPORTED)


def test_dora_written_by_peft_is_refused_by_name(tmp_path: Path) -> None:
    with quiet_peft():
        dora = peft_injected(tiny_model("llama"), r=2, target_modules=["q_proj"], use_dora=True)
    assert "DoRA" in str(refusal(peft_saved(dora, tmp_path)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 0}, "r=0"),
        ({"r": -4}, "r=-4"),
        ({"r": 10**9}, "r=1000000000"),
        ({"r": 10**400}, "r="),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is True"),
        ({"r": None}, "r is None"),
        ({"r": 4}, "its rank is 4"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": -1}, "alpha=-1"),
        ({"lora_alpha": 0}, "alpha=0"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_dropout": 2}, "dropout=2"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"bias": "some"}, "bias='some'"),
        ({"bias": 3}, "bias is 3"),
        ({"target_modules": 5}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": "("}, "regular expression"),
        ({"target_modules": "(?:.|..|...)+" * 3 + "(?<!j)$"}, "backtracks without end"),
        ({"target_modules": "(?:" * 40 + "a" + "{2})" * 40}, "repeats its parts"),
        ({"target_modules": "a" * 10_000}, "characters"),
        ({"target_modules": ["k_proj", "v_proj"]}, Q),
        ({"target_modules": "attention"}, Q),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 7}}, "its rank is 7"),
        ({"rank_pattern": {"(": 2}}, "regular expression"),
        ({"alpha_pattern": {"(?:.|..|...)+" * 3 + "(?<!j)$": 2}}, "backtracks without end"),
        ({"rank_pattern": {"(?:" * 40 + "a" + "{2})" * 40: 2}}, "repeats its parts"),
        ({"alpha_pattern": {"(" * 900 + ")" * 900: 2}}, "regular expression"),
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
        ({"modules_to_save": ["lm_head"]}, "no tensor does"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
        ({"layers_to_transform": [-1]}, "layers="),
        ({"peft_type": None}, "peft_type is None"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"task_type": 7}, "task_type"),
        ({"init_lora_weights": [1]}, "init_lora_weights"),
    ],
)
def test_a_field_that_cannot_be_meant_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    edit(folder, **changes)
    assert says in str(refusal(folder))


def test_all_problems_of_a_config_are_told_at_once(folder: Path) -> None:
    edit(folder, use_dora=True, lora_bias=True, bias=3, lora_alpha=None)
    found = refusal(folder).found
    assert all(name in found for name in ("use_dora", "lora_bias", "bias is 3", "lora_alpha"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"peft_type": "LORA", "r": 2, "r": 64, "lora_alpha": 4}', "twice"),
        (b'{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}', "NaN"),
        (b'{"peft_type": "LORA", "r": 2, "lora_alpha": Infinity}', "Infinity"),
        (b"[" * 100_000, "not JSON"),
        (b'{"r": ' + b"9" * 5_000 + b"}", "not JSON"),
        (b" " * (16 * 2**20 + 1), "at most 16,777,216"),
    ],
)
def test_a_config_that_is_no_json_is_refused(folder: Path, text: bytes, says: str) -> None:
    (folder / "adapter_config.json").write_bytes(text)
    assert says in str(refusal(folder))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(KEY), "lora_B but no lora_A"),
        (lambda t: t.pop(KEY.replace("_A", "_B")), "lora_A but no lora_B"),
        (lambda t: t.update({KEY.replace(".weight", ".default.weight"): t[KEY].clone()}), "lora_A twice"),
        (lambda t: t.update({KEY: torch.zeros(3, 6)}), "its rank is 2"),
        (lambda t: t.update({KEY: torch.zeros(2, 0)}), "its rank is 2"),
        (lambda t: t.update({KEY: torch.zeros(2)}), "its rank is 2"),
        (lambda t: t.update({KEY: torch.zeros(2, 6, 1, 1)}), "its rank is 2"),
        (lambda t: t.update({KEY: torch.full((2, 6), NAN)}), "NaN"),
        (lambda t: t[KEY].fill_(INF), "NaN or infinity"),
        (lambda t: t.update({KEY: torch.zeros(2, 6, dtype=torch.int64)}), "I64"),
        (lambda t: t.update({KEY: torch.zeros(2, 6, dtype=torch.float8_e4m3fn)}), "F8"),
        (lambda t: t.update({KEY: torch.zeros(2, 6, dtype=torch.complex64)}), "C64"),
        (lambda t: t.update({"base_model.model.../../etc.lora_A.weight": torch.zeros(2, 6)}), "no key"),
        (lambda t: t.update({"model.layers.0.q_proj.lora_A.weight": torch.zeros(2, 6)}), "no key"),
        (lambda t: t.update({f"base_model.model.{Q}.lora_magnitude_vector": torch.zeros(8)}), "lora_magnitude_vector"),
        (lambda t: t.update({f"base_model.model.{Q}.lora_B.bias": torch.zeros(8)}), "lora_B.bias"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(6)}), "model.norm.weight"),
        (lambda t: t.update({f"base_model.model.{V}.bias": torch.zeros(4)}), "bias"),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_tensors_that_lie_are_refused(folder: Path, change: Any, says: str) -> None:
    edit_tensors(folder, change)
    assert says in str(refusal(folder))


def test_nothing_is_read_of_tensors_whose_header_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_tensors(folder, lambda t: t.update({KEY: torch.zeros(3, 6)}))
    monkeypatch.setattr("lorawise.base.safetensors.SafetensorsFile._bits", lambda *_: pytest.fail("a tensor was read"))
    refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 8, 60, -1, -30])
def test_a_truncated_tensor_file_is_refused(folder: Path, kept: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot be read" in str(refusal(folder))


def test_a_header_that_claims_more_than_there_is_is_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refusal(folder)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 400), byte=st.integers(0, 255), file=st.booleans())
def test_a_changed_byte_is_refused_or_harmless_but_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, file: bool
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "adapter"
    save_adapter(folder, sample_weights(LoraConfig(r=2)), base="b")
    path = folder / ("adapter_config.json" if file else "adapter_model.safetensors")
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(bytes(data))
    with contextlib.suppress(AdapterError):
        load_adapter(folder)


def test_a_pickle_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    error = refusal(folder)
    assert "pickle" in error.found
    assert "save_pretrained" in error.cure


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in str(refusal(folder))
    assert "adapter_config.json is missing" in str(refusal(tmp_path / "nowhere"))
    assert str(folder) in refusal(tmp_path).cure  # a run's folder, whose adapter is one level down


def test_a_file_that_may_not_be_read_is_an_adapter_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in str(refusal(folder))


# -- attaching what was loaded ------------------------------------------------------------------------------------


def test_an_adapter_of_another_model_is_refused_with_the_list(tmp_path: Path) -> None:
    theirs = peft_injected(tiny_model("llama"), r=2, target_modules=["q_proj", "up_proj"])
    weights = load_adapter(peft_saved(theirs, tmp_path))
    gpt2 = tiny_model("gpt2")
    with pytest.raises(AdapterError, match=r"none of its modules is in the model") as caught:
        attach(gpt2, {"theirs": weights})
    assert "model.layers.0.self_attn.q_proj: the model has no such layer" in caught.value.found
    with pytest.raises(AdapterError, match=r"model\.layers\.1\.mlp\.up_proj: A \(2, 32\) and B \(48, 2\)"):
        attach(tiny_model("llama", hidden_size=64), {"theirs": weights})
    with pytest.raises(AdapterError, match=r"layers\.1\.mlp\.up_proj: .* \(nearest: model\.layers\.0\.mlp\.up_proj\)"):
        attach(tiny_model("llama", num_hidden_layers=1), {"theirs": weights})


def test_an_adapter_of_a_shallower_model_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    theirs = peft_injected(tiny_model("llama"), r=2, target_modules=["q_proj"])
    weights = load_adapter(peft_saved(theirs, tmp_path))
    with pytest.raises(AdapterError, match=r"layers\.2\.self_attn\.q_proj: its setting names it, it has no tensors"):
        attach(tiny_model("llama", num_hidden_layers=3), {"theirs": weights})


def test_targets_that_peft_lists_for_other_models_too_do_no_harm(tmp_path: Path) -> None:
    theirs = peft_injected(tiny_model("llama"), r=2, target_modules=["q_proj", "query_key_value", "c_attn"])
    adapters = attach(tiny_model("llama"), {"theirs": load_adapter(peft_saved(theirs, tmp_path))})
    assert len(adapters.layers) == 2


def test_an_adapter_that_lacks_a_layer_is_refused_with_the_list(tmp_path: Path) -> None:
    folder = peft_saved(peft_injected(tiny_model("llama"), r=2, target_modules=["q_proj"]), tmp_path)
    gone = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    edit_tensors(folder, lambda t: [t.pop(f"{gone}{half}.weight") for half in "AB"])
    weights = load_adapter(folder)
    with pytest.raises(AdapterError, match=r"model\.layers\.1\.self_attn\.q_proj"):
        attach(tiny_model("llama"), {"theirs": weights})
    adapters = inject(tiny_model("llama"), weights.config)
    with pytest.raises(AdapterError, match=r"model\.layers\.1\.self_attn\.q_proj"):
        adapters.load("default", weights)
