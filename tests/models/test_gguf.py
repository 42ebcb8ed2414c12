import errno
import json
import threading
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tests.models.gguf_files import write_gguf
from tests.models.saved_models import VOCABULARY, tiny_tokenizer
from tests.tiny import tiny_model
from transformers import PreTrainedModel

from lorawise.base.errors import ModelError, StorageError, TensorFileError
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.models.gguf import converted_gguf
from lorawise.models.open import open_model, resolve_model

IDS = torch.arange(3, 20)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny_gguf(path: Path, kind: Kind = Kind.F32, *, tied: bool = True) -> PreTrainedModel:
    model = tiny_model(
        "llama", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, tie_word_embeddings=tied, head_dim=16
    )
    write_gguf(path, model, kind)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_float_file_becomes_the_model_it_was_written_from(tied: bool, tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", tied=tied)
    files = resolve_model(tmp_path / "m.gguf", progress=[].append)
    opened = open_model(files)
    assert (files.kind, opened.dtype) == ("gguf", torch.float32)
    assert (opened.lm_head.weight is opened.model.embed_tokens.weight) == tied
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.Q8_0, torch.bfloat16)])
def test_every_weight_is_the_files_own_in_the_type_the_table_says(
    kind: Kind, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_gguf(tmp_path / "m.gguf", kind)
    opened = open_model(resolve_model(tmp_path / "m.gguf", progress=[].append), dtype="float32")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name, parameter in (
        ("blk.1.ffn_down.weight", opened.model.layers[1].mlp.down_proj.weight),
        ("token_embd.weight", opened.model.embed_tokens.weight),
    ):
        stored = torch.from_numpy(gguf.dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        assert torch.equal(parameter, stored.to(dtype).float())


def test_tokenizer_and_chat_template_come_along(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    tokenizer = ChatTokenizer.open(resolve_model(tmp_path / "m.gguf", progress=[].append).folder)
    messages = [{"role": "user", "content": "the cat"}]
    text = tokenizer.render(messages, add_generation_prompt=True)
    assert text == tiny_tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode(text)[0].tolist() == tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.stop_ids == (2,)


def test_the_second_use_converts_nothing_and_knows_the_file_by_its_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    folder = converted_gguf(tmp_path / "m.gguf")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "converting m.gguf (15 F32) to float32 safetensors in the cache, once\n"
    (tmp_path / "m.gguf").rename(tmp_path / "other.gguf")
    assert converted_gguf(tmp_path / "other.gguf") == folder
    assert capsys.readouterr().err == ""
    assert json.loads((folder / "gguf.json").read_text())["tensor_types"] == {"F32": 15}


def test_a_conversion_that_was_killed_is_made_again(tmp_path: Path, cache: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    folder = converted_gguf(tmp_path / "m.gguf", progress=[].append)
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    left = cache / "models" / ".gguf-left.partial"
    left.mkdir()
    assert converted_gguf(tmp_path / "m.gguf", progress=[].append) == folder
    open_model(resolve_model(folder))
    assert not left.exists()


def test_two_that_ask_at_once_convert_once(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    told: list[str] = []
    found: list[Path] = []
    ask = [
        threading.Thread(target=lambda: found.append(converted_gguf(tmp_path / "m.gguf", progress=told.append)))
        for _ in range(3)
    ]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert sum("converting" in line for line in told) == 1


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf(tmp_path / "m.gguf")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(StorageError, match="no space left"):
        converted_gguf(tmp_path / "m.gguf", progress=[].append)
    assert [path.name for path in (cache / "models").iterdir()] == [".lock"]
    monkeypatch.undo()
    monkeypatch.setenv("LORAWISE_CACHE", str(cache))
    converted_gguf(tmp_path / "m.gguf", progress=[].append)


def test_what_is_not_a_gguf_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(TensorFileError, match="not a GGUF file"):
        resolve_model(tmp_path / "text.gguf")
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "imaginary")
    writer.add_tensor("a.weight", torch.ones(2, 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="imaginary"):
        resolve_model(tmp_path / "odd.gguf", progress=[].append)
    whole = tmp_path / "m.gguf"
    tiny_gguf(whole)
    (tmp_path / "torn.gguf").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(TensorFileError, match=r"torn\.gguf"):
        resolve_model(tmp_path / "torn.gguf", progress=[].append)
