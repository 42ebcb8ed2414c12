"""Hub ids: cached, well known, over the network, or told why not; and GGUF files by their headers."""

import contextlib
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from hypothesis import given
from hypothesis import strategies as st
from tests.facts.shapes import config_of, meta_model, write_config
from tests.facts.test_disk import saved

from lorawise.base.errors import LorawiseError, ModelError, TensorFileError
from lorawise.base.gguf import GGUFHeader
from lorawise.base.safetensors import SafetensorsFile
from lorawise.facts import hub, read_model
from lorawise.facts.families import families
from lorawise.facts.known import known_rows
from lorawise.facts.read import read_model_here

httpx: Any = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]  # httpx or its successor


@pytest.mark.parametrize("row", known_rows(), ids=lambda row: row["ids"][0])
def test_a_well_known_model_has_the_parameters_its_page_counts(row: dict[str, Any]) -> None:
    for name in row["ids"]:
        facts = read_model(name)
        assert facts.parameters == row["parameters"]
        assert "facts-from-table" in [note.code for note in facts.notes]
        assert not facts.exact


def test_no_id_is_in_two_rows_and_every_family_has_a_rule() -> None:
    names = [name.lower() for row in known_rows() for name in row["ids"]]
    assert len(names) == len(set(names))
    assert {row["model_type"] for row in known_rows()} <= set(families())


def test_the_embedded_model_is_known() -> None:
    assert read_model("embedded:smollm2-135m-instruct").parameters == 134_515_008


def cache_at(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> Path:
    """An empty snapshot of `name` in a hub cache of its own, laid out as huggingface_hub does."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots" / "abc123").mkdir(parents=True)
    return repository / "snapshots" / "abc123"


def test_a_cached_snapshot_is_read_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(cache_at(monkeypatch, tmp_path, "meta-llama/Llama-3.1-8B"), "qwen3")
    facts = read_model("meta-llama/Llama-3.1-8B")
    assert (facts.model_type, facts.exact, facts.source) == ("qwen3", True, "meta-llama/Llama-3.1-8B")


def test_a_snapshot_without_its_shards_is_read_by_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache_at(monkeypatch, tmp_path, "some/model")
    write_config(snapshot, config_of("qwen3"))
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    facts = read_model("some/model")
    assert facts.parameters == meta_model(config_of("qwen3")).num_parameters()
    assert not facts.exact


def test_the_hubs_headers_prove_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_at(monkeypatch, tmp_path / "cache", "another/model")
    folder = saved(tmp_path, "qwen3 tied")
    tensors = SafetensorsFile.open(folder / "model.safetensors").tensors
    infos = {
        name: TensorInfo(dtype=t.dtype, shape=list(t.shape), data_offsets=(t.start, t.end))
        for name, t in tensors.items()
    }
    files = {"model.safetensors": SafetensorsFileMetadata(metadata={}, tensors=infos)}
    answer = SafetensorsRepoMetadata(metadata=None, sharded=False, weight_map={}, files_metadata=files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(folder / file))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda name: answer)
    monkeypatch.setattr(hub, "_require_connection", lambda name: None)
    facts = read_model("some/model")
    assert facts.exact
    assert facts.dtype == "bfloat16"
    assert facts.parameters == meta_model(config_of("qwen3 tied")).num_parameters()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody/nothing", "hub cannot be reached for nobody/nothing .HF_HUB_OFFLINE is set.*well-known id.*cure"),
        ("unsloth/Llama-3.1-8B-Instruct", "'meta-llama/Llama-3.1-8B-Instruct' is known without the hub"),
        ("Qwen/Qwen2.5-7B-Instrct", "'Qwen/Qwen2.5-7B-Instruct' is known without the hub"),
        ("what is this", "'what is this' is neither a file, a folder nor a hub id"),
        ("a/b/c", "there is no model at a/b/c"),
    ],
)
def test_an_id_that_cannot_be_had_says_why(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){says}"):
        read_model(name)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(hub, "getproxies", dict)
    begin = time.monotonic()
    with pytest.raises(ModelError, match=r"(?s)cannot be reached for nobody/nothing \(http.*refused.*cure"):
        read_model("nobody/nothing")
    assert time.monotonic() - begin < hub.PATIENCE


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (GatedRepoError, "is gated.*hf auth login"),
        (RepositoryNotFoundError, "the model hub knows no 'some/model'.*spelling"),
        (RemoteEntryNotFoundError, "has no config.json on the hub"),
        (HfHubHTTPError, "cannot be reached for some/model"),
        (httpx.ConnectError, "cannot be reached for some/model"),
    ],
)
def test_what_the_hub_refuses_is_told_with_a_cure(
    answer: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, file: str) -> str:
        if answer is httpx.ConnectError:
            raise answer("all connection attempts failed")
        request = httpx.Request("HEAD", "https://hub.invalid")
        raise answer("no", response=httpx.Response(403, request=request))  # type: ignore[call-arg]

    cache_at(monkeypatch, tmp_path, "another/model")
    monkeypatch.setattr(hub, "_require_connection", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ModelError, match=f"(?s){says}"):
        read_model("some/model")


def test_an_id_never_leaves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.cached_snapshot("../..") is None


# ---- GGUF, written by the gguf package ----


def llama_gguf(
    path: Path, *, kind: gguf.GGMLQuantizationType | None = None, tied: bool = True, tokens: int = 300
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"t{i}" for i in range(tokens)])
    writer.add_token_scores([0.0] * tokens)
    shapes = {"token_embd.weight": (tokens, 32), "output_norm.weight": (32,), "rope_freqs.weight": (4,)}
    if not tied:
        shapes["output.weight"] = (tokens, 32)
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_q.weight": (32, 32), f"blk.{i}.attn_k.weight": (16, 32), f"blk.{i}.attn_v.weight": (16, 32),
            f"blk.{i}.attn_output.weight": (32, 32), f"blk.{i}.ffn_gate.weight": (64, 32),
            f"blk.{i}.ffn_up.weight": (64, 32), f"blk.{i}.ffn_down.weight": (32, 64),
            f"blk.{i}.attn_norm.weight": (32,), f"blk.{i}.ffn_norm.weight": (32,),
        }  # fmt: skip
    for name, shape in shapes.items():
        values = np.zeros(shape, np.float32)
        if len(shape) == 2 and kind is not None:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "dtype"), [(None, "float32"), (gguf.GGMLQuantizationType.Q8_0, "bfloat16")])
def test_a_gguf_header_gives_the_model_in_memory(kind: Any, dtype: str, tied: bool, tmp_path: Path) -> None:
    facts = read_model(llama_gguf(tmp_path / "m.gguf", kind=kind, tied=tied))
    assert (facts.model_type, facts.tied, facts.dtype, facts.exact) == ("llama", tied, dtype, True)
    assert (facts.hidden_size, facts.vocab_size, facts.num_kv_heads, facts.max_positions) == (32, 300, 2, 128)
    held = sum(
        int(np.prod(t.shape)) for n, t in GGUFHeader.open(tmp_path / "m.gguf").tensors.items() if "rope" not in n
    )
    assert facts.parameters == held
    assert facts.matrix("model.layers.1.mlp.down_proj").in_features == 64


ARCHITECTURES = {
    "llama": "llama", "llama biased": "llama", "qwen2": "qwen2", "qwen2 tied": "qwen2", "qwen3": "qwen3",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "falcon": "falcon", "falcon grouped": "falcon", "olmo": "olmo", "olmo2": "olmo2",
    "cohere": "command-r", "granite": "granite", "stablelm": "stablelm", "starcoder2": "starcoder2",
    "smollm3": "smollm3", "bloom": "bloom",
}  # fmt: skip


def as_gguf(path: Path, case: str, architecture: str) -> int:
    """transformers' own tiny model under the names the gguf package gives its tensors; the number of its parameters."""
    config, model = config_of(case), meta_model(config_of(case))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_context_length(128)
    own_width = case.startswith(("gpt2", "falcon", "bloom"))  # four times the hidden size
    writer.add_feed_forward_length(128 if own_width else config.intermediate_size)
    writer.add_head_count(4)
    grouped = getattr(config, "num_key_value_heads", None)
    if case.startswith("falcon"):
        grouped = config.num_kv_heads if config.new_decoder_architecture else 1
    writer.add_head_count_kv(grouped or 4)
    if head := getattr(config, "head_dim", None):
        writer.add_key_length(head)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, 2)
    for name, parameter in model.named_parameters():
        spellings = (name, name.removeprefix("transformer."))
        found = next(filter(None, (names.get_name(each, try_suffixes=(".weight", ".bias")) for each in spellings)))
        writer.add_tensor(found, np.zeros(tuple(parameter.shape), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return int(model.num_parameters())


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_gguf_of_every_architecture_is_told_exactly(case: str, tmp_path: Path) -> None:
    parameters = as_gguf(tmp_path / "m.gguf", case, ARCHITECTURES[case])
    facts = read_model(tmp_path / "m.gguf")
    assert facts.notes == ()
    assert facts.exact
    assert facts.parameters == parameters
    assert facts.architecture == type(meta_model(config_of(case))).__name__


def test_our_reader_of_gguf_headers_sees_what_the_gguf_package_sees(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q4_0)
    theirs, ours = gguf.GGUFReader(path), GGUFHeader.open(path)
    assert {t.name: (tuple(int(n) for n in t.shape), int(t.tensor_type)) for t in theirs.tensors} == {
        name: (t.shape, t.type) for name, t in ours.tensors.items()
    }
    assert ours.settings["llama.embedding_length"] == theirs.fields["llama.embedding_length"].contents()
    assert ours.settings["tokenizer.ggml.tokens"] == 300


def edited(change: Callable[[bytearray], bytearray]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(bytearray(path.read_bytes())))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (edited(lambda raw: raw[:40]), "is torn"),
        (edited(lambda raw: raw[:-6000]), "is torn|ends"),
        (edited(lambda raw: bytearray(b"GGML") + raw[4:]), "is not a GGUF file.*expected"),
        (edited(lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:]), "GGUF version 9"),
        (edited(lambda raw: raw[:8] + struct.pack("<Q", 2**60) + raw[16:]), "counts 1,152"),
        (edited(lambda raw: raw.replace(b"general.architecture", b"general.architexture")), "architecture 'None'"),
        (edited(lambda raw: bytearray()), "is not a GGUF file"),
    ],
)
def test_a_gguf_file_that_is_wrong_is_refused(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "m.gguf")
    spoil(path)
    with pytest.raises(LorawiseError, match=f"(?s){says}"):
        read_model(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return llama_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", tokens=20).read_bytes()


@given(damage=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_to_a_gguf_header_gives_a_traceback(
    whole: bytes, damage: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(whole)
    for place, value in damage:
        raw[place] = value
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(raw)
    with contextlib.suppress(ModelError, TensorFileError):
        read_model(path)


def test_from_this_machine_alone_the_hub_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("socket.create_connection", asked)
    known = read_model_here("meta-llama/Llama-3.1-8B")
    assert known is not None
    assert known.parameters == 8_030_261_248
    assert read_model_here("nobody/nothing") is None
