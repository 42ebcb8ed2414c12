import errno
import os
from pathlib import Path

import numpy as np
import pytest
from tests.data.real_templates import open_tokenizer, write_folder

from lorawise.base.cache import cache_folder
from lorawise.data import cache as token_cache
from lorawise.data.encode import EncodeOptions, encode_rows
from lorawise.data.encoder import Encoder
from lorawise.data.rows import Row, Where
from lorawise.data.tokenizer import ChatTokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return open_tokenizer(tmp_path / "models", "llama3")


@pytest.fixture
def encodings(monkeypatch):
    """How often rows were really encoded."""
    calls = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, rows: calls.append(len(rows)) or encode(self, rows))
    return calls


def texts(*words, path="a.jsonl"):
    return [Row(kind="text", where=Where(path=path, line=i + 1), text=word) for i, word in enumerate(words)]


def same(one, other):
    return (
        [(e.ids.tolist(), e.trained.tolist(), e.row, e.cut, e.label) for e in one]
        == [(e.ids.tolist(), e.trained.tolist(), e.row, e.cut, e.label) for e in other]
        and one.stop_ids == other.stop_ids
        and one.digest == other.digest
        and one.problems == other.problems
        and one.findings == other.findings
        and one.weights.tolist() == other.weights.tolist()
    )


def test_a_second_run_reads_what_the_first_encoded(tokenizer, tmp_path, encodings):
    rows = texts("Lima is in Peru. " * 9, "Paris", "")
    options = EncodeOptions(max_length=20)
    first = encode_rows(rows, tokenizer, options, on_bad="skip", cache=tmp_path)
    second = encode_rows(rows, tokenizer, options, on_bad="skip", cache=tmp_path)
    assert encodings == [3]
    assert same(first, second)


def test_labels_are_kept(tokenizer, tmp_path):
    rows = [Row(kind="classification", where=Where(path="a", line=1), text="x", label=word) for word in ("no", "yes")]
    options = EncodeOptions(labels=("no", "yes"))
    first, second = (encode_rows(rows, tokenizer, options, cache=tmp_path) for _ in range(2))
    assert [row.label for row in second] == [0, 1]
    assert same(first, second)


def test_other_rows_or_options_are_encoded_anew(tokenizer, tmp_path, encodings):
    encode_rows(texts("a b"), tokenizer, cache=tmp_path)
    encode_rows(texts("a c"), tokenizer, cache=tmp_path)
    encode_rows(texts("a b"), tokenizer, EncodeOptions(max_length=9), cache=tmp_path)
    assert len(encodings) == 3


def test_another_template_or_another_tokenizer_alone_is_encoded_anew(tmp_path):
    turns = {
        "messages": ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        "trained_turns": (1,),
    }
    rows = [Row(kind="messages", where=Where(path="a", line=1), **turns)]
    folder = write_folder(tmp_path / "model", "qwen3")
    with_bos = write_folder(tmp_path / "bos", "qwen3", adds_bos=True)
    (folder / "mine.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    opened = [
        ChatTokenizer.open(folder),
        ChatTokenizer.open(folder, template=str(folder / "mine.jinja")),
        ChatTokenizer.open(with_bos),
    ]
    lengths = [len(encode_rows(rows, tokenizer, cache=tmp_path)[0]) for tokenizer in opened]
    assert len(set(lengths)) == 3


def test_problems_name_the_file_read_now_not_the_one_cached(tokenizer, tmp_path):
    encode_rows(texts("a b", ""), tokenizer, on_bad="skip", cache=tmp_path)
    moved = encode_rows(texts("a b", "", path="moved.jsonl"), tokenizer, on_bad="skip", cache=tmp_path)
    assert [str(problem).split(":")[0] for problem in moved.problems] == ["moved.jsonl"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "another layout"])
def test_a_torn_file_is_made_again(damage, tokenizer, tmp_path, encodings):
    rows = texts("Lima is in Peru.", "Paris is in France.")
    first = encode_rows(rows, tokenizer, cache=tmp_path)
    (path,) = (tmp_path / "tokens").glob("*.npz")
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            at = whole.index(first[0].ids.tobytes()[:8])
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            path.write_bytes(b"not a cache at all")
        case _:
            np.savez(path, ids=np.zeros(3))
    assert same(encode_rows(rows, tokenizer, cache=tmp_path), first)
    assert len(encodings) == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_a_finding_and_leaves_nothing_behind(code, tokenizer, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(token_cache.os, "replace", refuse)
    encoded = encode_rows(texts("Lima is in Peru."), tokenizer, cache=tmp_path)
    assert len(encoded) == 1
    assert [finding.code for finding in encoded.findings] == ["cache-unwritable"]
    assert os.strerror(code) in encoded.findings[0].message
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_cache_that_is_a_file_is_a_finding(tokenizer, tmp_path):
    (tmp_path / "tokens").write_text("in the way")
    encoded = encode_rows(texts("Lima is in Peru."), tokenizer, cache=tmp_path)
    assert [finding.code for finding in encoded.findings] == ["cache-unwritable"]


@pytest.mark.parametrize(
    ("variable", "value", "folder"),
    [
        ("LORAWISE_CACHE", "{home}/mine", "{home}/mine"),
        ("LORAWISE_CACHE", "~/mine", "{home}/mine"),
        ("XDG_CACHE_HOME", "{home}/shared", "{home}/shared/lorawise"),
        ("HOME", "{home}", "{home}/.cache/lorawise"),
    ],
)
def test_rows_are_kept_in_the_one_cache_that_models_are_kept_in(
    variable, value, folder, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.delenv("LORAWISE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, value.format(home=tmp_path))
    encode_rows(texts("Lima"), tokenizer)
    kept = Path(folder.format(home=tmp_path))
    assert cache_folder() == kept
    assert len(list((kept / "tokens").glob("*.npz"))) == 1
