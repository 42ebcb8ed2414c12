"""Merged GGUF files: the same file but for what the adapter updates, opened again by this project's own reader."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exporting.tiny_cases import MIXED, adapted, apart, model_of, ours
from tests.models.gguf_files import write_gguf

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, LorawiseError, StorageError
from lorawise.base.gguf import GGUFHeader
from lorawise.cli.app import run
from lorawise.exporting.export import export
from lorawise.exporting.exporters import Exported, Options
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model

Kind = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))


def case(tmp_path: Path, family: str = "llama", kind: Kind = Kind.F32, config: LoraConfig = MIXED) -> Options:
    model = model_of(family)
    write_gguf(tmp_path / "base.gguf", model, kind)
    adapted(model, tmp_path / "own", config)
    return Options(model=str(tmp_path / "base.gguf"), merged=True)


def merged(tmp_path: Path, options: Options) -> Exported:
    from lorawise.store.algebra.result import Source

    return export(Source.open(tmp_path / "own"), "gguf", tmp_path / "out", options)


def opened(path: Path) -> Any:
    return open_model(resolve_model(path, progress=[].append), dtype="float32")


def tensors(path: Path) -> Mapping[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3", "phi3"])
def test_the_merged_file_answers_as_base_and_adapter(family: str, tmp_path: Path) -> None:
    done = merged(tmp_path, case(tmp_path, family))
    wanted = ours(opened(tmp_path / "base.gguf"), tmp_path / "own")
    assert apart(ours(opened(tmp_path / "out" / "model.gguf")), wanted) < 1e-5
    assert apart(ours(opened(tmp_path / "base.gguf")), wanted) > 0.1
    assert done.error < 1e-5


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1, Kind.Q4_0, Kind.Q4_1])
def test_every_type_is_kept_and_its_loss_is_that_of_dense_arithmetic(kind: Kind, tmp_path: Path) -> None:
    options = case(tmp_path, "qwen2", kind, LoraConfig(r=4, scaling=0.5))
    done = merged(tmp_path, replace(options, dtype="keep"))
    before, after = tensors(tmp_path / "base.gguf"), tensors(tmp_path / "out" / "model.gguf")
    assert {n: t.tensor_type for n, t in after.items()} == {n: t.tensor_type for n, t in before.items()}
    weights = {layer.name: layer for layer in done.layers}
    name = "model.layers.1.mlp.up_proj"
    a, b = (half.double() for half in _source(tmp_path).adapter.layers[name])
    wanted = 0.5 * b @ a
    dense = [gguf.dequantize(held["blk.1.ffn_up.weight"].data, kind).astype(np.float64) for held in (before, after)]
    got = dense[1] - dense[0]
    assert weights[name].error == pytest.approx(np.linalg.norm(got - wanted) / np.linalg.norm(wanted), rel=1e-4)
    assert weights[name].retention == pytest.approx((got * wanted).sum() / np.linalg.norm(wanted) ** 2, rel=1e-4)
    assert (done.error > 0.05) == ("rounded-away" in {finding.code for finding in done.findings})


def _source(tmp_path: Path) -> Any:
    from lorawise.store.algebra.result import Source

    return Source.open(tmp_path / "own")


def test_what_is_not_adapted_is_byte_for_byte_the_bases(tmp_path: Path) -> None:
    merged(tmp_path, case(tmp_path, "llama", Kind.Q8_0))
    old, new = (tmp_path / "base.gguf").read_bytes(), (tmp_path / "out" / "model.gguf").read_bytes()
    assert len(old) == len(new)
    held = tensors(tmp_path / "base.gguf")
    first = min(tensor.data_offset for tensor in held.values())
    assert old[:first] == new[:first]
    for name, tensor in held.items():
        place = slice(tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        adapted_here = name.startswith("blk.") and "norm" not in name
        assert (old[place] == new[place]) != adapted_here, name


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", "F16"), ("q8_0", "Q8_0"), ("float32", "F32"), ("auto", "Q8_0")]
)
def test_another_type_is_for_the_adapted_tensors_alone(dtype: str, kind: str, tmp_path: Path) -> None:
    options = case(tmp_path, "llama", Kind.Q4_0)
    done = merged(tmp_path, replace(options, dtype=dtype))
    told = [finding.code for finding in done.findings]
    assert told == (["other-base", "widened"] if dtype == "auto" else ["other-base"])  # it was trained over `tiny`
    after = tensors(tmp_path / "out" / "model.gguf")
    assert after["blk.0.attn_q.weight"].tensor_type.name == kind
    assert after["token_embd.weight"].tensor_type.name == "Q4_0"
    before = tensors(tmp_path / "base.gguf")
    assert np.array_equal(after["token_embd.weight"].data, before["token_embd.weight"].data)
    wanted = ours(opened(tmp_path / "base.gguf"), tmp_path / "own")
    assert apart(ours(opened(tmp_path / "out" / "model.gguf")), wanted) < 0.05
    assert done.error < 0.02


def k_quantised(path: Path) -> None:
    """The same file with one matrix's type given as Q6_K, whose 210 bytes hold 256 values."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 128), (writer.add_embedding_length, 256), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 256), (writer.add_head_count, 4), (writer.add_head_count_kv, 4),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, 8),
    ):  # fmt: skip
        add(value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 256), dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((256, 210), dtype=np.uint8), raw_dtype=Kind.Q6_K)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_types_that_are_only_read_become_q8_0_unless_they_should_be_kept(tmp_path: Path) -> None:
    from lorawise.lora.weights import AdapterWeights
    from lorawise.store import save_adapter

    k_quantised(tmp_path / "base.gguf")
    layers = {"model.layers.0.mlp.up_proj": (torch.randn(4, 256), torch.randn(256, 4))}
    save_adapter(tmp_path / "own", AdapterWeights(config=LoraConfig(r=4), layers=layers), base="b")
    options = Options(model=str(tmp_path / "base.gguf"), merged=True)
    with pytest.raises(AdapterError, match=r"ffn_up.weight is Q6_K.*\n.*\n.*leave --dtype out"):
        merged(tmp_path, replace(options, dtype="keep"))
    assert not (tmp_path / "out").exists()
    done = merged(tmp_path, options)
    assert "1 from Q6_K to Q8_0" in done.findings[1].message
    after = tensors(tmp_path / "out" / "model.gguf")
    assert (after["blk.0.ffn_up.weight"].tensor_type, after["blk.0.ffn_down.weight"].tensor_type) == (
        Kind.Q8_0,
        Kind.Q6_K,
    )
    assert np.array_equal(after["blk.0.ffn_down.weight"].data, np.ones((256, 210), dtype=np.uint8))
    assert done.error < 0.02


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: Options(model="", merged=True), "tiny is no GGUF file"),
        (lambda p: Options(model=str(p / "none.gguf"), merged=True), "there is no file"),
        (lambda p: Options(model=str(p), merged=True), "is no GGUF file"),
        (lambda p: Options(model=str(p / "base.gguf"), merged=True, dtype="bfloat17"), "no dtype of a merged GGUF"),
        (lambda p: Options(model=str(p / "other.gguf"), merged=True), "does not fit"),
        (lambda p: Options(model=str(p / "torn.gguf"), merged=True), "torn"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_byte(change: Any, told: str, tmp_path: Path) -> None:
    case(tmp_path)
    write_gguf(tmp_path / "other.gguf", model_of("gpt2"), Kind.F32)
    (tmp_path / "torn.gguf").write_bytes((tmp_path / "base.gguf").read_bytes()[:-2000])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LorawiseError) as caught:
        merged(tmp_path, change(tmp_path))
    assert told in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    case(folder, "llama", Kind.Q4_0)
    return folder


@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.floats(0, 1),
    names=st.booleans(),
)
@settings(max_examples=60)
def test_a_damaged_file_is_refused_or_merged_and_never_half_written(
    changes: list[tuple[float, int]], cut: float | None, names: bool, whole: Path
) -> None:
    """Bytes of the header changed at random: of all of it, or of the list of tensors; and files cut short."""
    header, raw = GGUFHeader.open(whole / "base.gguf"), bytearray((whole / "base.gguf").read_bytes())
    first = header.infos_at if names else 0
    for place, byte in changes:
        raw[first + int(place * (header.data_at - first - 1))] = byte
    (whole / "bad.gguf").write_bytes(raw if cut is None else raw[: int(cut * len(raw))])
    shutil.rmtree(whole / "out", ignore_errors=True)
    try:
        merged(whole, Options(model=str(whole / "bad.gguf"), merged=True))
    except LorawiseError:
        assert not (whole / "out").exists()
    assert not list(whole.glob(".*.partial"))


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_export_that_is_stopped_leaves_nothing(problem: BaseException, tmp_path: Path) -> None:
    options = case(tmp_path)

    def stop(done: int, wanted: int) -> None:
        if done > wanted // 2:
            raise problem

    with pytest.raises((KeyboardInterrupt, StorageError)):
        merged(tmp_path, Options(model=options.model, merged=True, progress=stop))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "own"]


def test_a_disk_too_small_is_told_of_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = case(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(StorageError, match="GB free"):
        merged(tmp_path, options)


def test_the_command_verifies_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case(tmp_path)
    command = ["export", str(tmp_path / "own"), "--to", "gguf", "--merged", "--model", str(tmp_path / "base.gguf")]
    assert run([*command, "-o", str(tmp_path / "out"), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verify"]["same"]
    assert told["retention"] == pytest.approx(1, abs=1e-5)
    assert len(told["layers"]) == 14
    assert run(["verify", str(tmp_path / "base.gguf"), str(tmp_path / "own"), str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["retention"] == told["retention"]
