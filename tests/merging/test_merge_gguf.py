"""A GGUF file as the base of a merge: a plain folder comes out, with the file's tokenizer and template."""

from pathlib import Path

import gguf
import pytest
from tests.exporting.tiny_cases import MIXED, adapted, apart, model_of, ours
from tests.models.gguf_files import write_gguf

from lorawise.base.errors import AdapterError, LorawiseError
from lorawise.cli.app import run
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.merging.merge import merge
from lorawise.merging.verify import verify
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model

Kind = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_a_gguf_base_merges_into_a_folder_that_answers_as_the_adapter_does(kind: Kind, tmp_path: Path) -> None:
    model = model_of("llama")
    write_gguf(tmp_path / "base.gguf", model, kind)
    adapted(model, tmp_path / "own", MIXED)
    told: list[tuple[int, int]] = []
    merged = merge(
        tmp_path / "base.gguf",
        tmp_path / "own",
        tmp_path / "out",
        dtype="float32",
        progress=lambda done, wanted: told.append((done, wanted)),
    )
    base = open_model(resolve_model(tmp_path / "base.gguf"), dtype="float32")
    alone = ours(base)
    wanted = ours(base, tmp_path / "own")
    assert apart(ours(open_model(resolve_model(tmp_path / "out"))), wanted) < 1e-5
    assert apart(alone, wanted) > 0.1
    assert merged.retention == pytest.approx(1, abs=1e-6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    written = tmp_path / "out" / "model.safetensors"
    assert told[-1][0] == told[-1][1] == written.stat().st_size - _head(written)
    tokenizers = [ChatTokenizer.open(resolve_model(tmp_path / name).folder) for name in ("base.gguf", "out")]
    assert tokenizers[0].template_digest == tokenizers[1].template_digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "cache", "out", "own"]
    assert verify(tmp_path / "base.gguf", tmp_path / "own", tmp_path / "out").same


def _head(path: Path) -> int:
    """Bytes before the first tensor."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_another_models_adapter_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", model_of("llama"), Kind.F32)
    adapted(model_of("gpt2"), tmp_path / "other", MIXED)
    with pytest.raises(AdapterError, match="the base has no such module"):
        merge(tmp_path / "base.gguf", tmp_path / "other", tmp_path / "out")
    (tmp_path / "torn.gguf").write_bytes((tmp_path / "base.gguf").read_bytes()[:-3000])
    with pytest.raises(LorawiseError, match=r"torn\.gguf"):
        merge(tmp_path / "torn.gguf", tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_gguf_is_told_apart_from_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("llama")
    write_gguf(tmp_path / "base.gguf", model, Kind.F32)
    adapted(model, tmp_path / "own", MIXED)
    own, base = str(tmp_path / "own"), str(tmp_path / "base.gguf")
    assert run(["export", own, "--to", "gguf", "--model", base, "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert run(["verify", base, own, str(tmp_path / "out" / "adapter.gguf")]) == 2
    assert "an adapter, not a model" in capsys.readouterr().err
