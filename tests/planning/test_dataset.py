"""What planning sees of the data, against what training would see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.workbench import byte_tokenizer, labelled_rows, rows_of, write_rows

from lorawise.base.errors import DataError
from lorawise.data.encode import encode_rows
from lorawise.data.encoder import EncodeOptions
from lorawise.data.read import read_rows
from lorawise.data.split import split_validation
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.planning import dataset
from lorawise.planning.dataset import read_data
from lorawise.runfile import RunFile, make_run_file


def run_of(train: Path | str, **data: Any) -> RunFile:
    run, _ = make_run_file({"model": "a/b", "data": {"train": str(train), **data}})
    return run


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    byte_tokenizer(tmp_path / "base")
    return tmp_path / "base"


def test_lengths_and_trained_tokens_are_those_of_training(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows_of(40))
    seen = read_data(run_of(path), tokenizer)
    rows = split_validation(read_rows(path), 0.05, 0).train
    trained = encode_rows(rows.rows, ChatTokenizer.open(tokenizer), EncodeOptions(), cache=tmp_path / "cache")
    assert seen.measured_by == "tokenizer"
    assert sorted(trained.lengths.tolist()) == seen.lengths.tolist()
    assert (seen.tokens, seen.trained_tokens) == (trained.tokens, trained.trained_tokens)
    assert (seen.rows, seen.validation_rows) == (38, 2)
    length = seen.longest - 1
    options = EncodeOptions(max_length=length)
    cut = encode_rows(rows.rows, ChatTokenizer.open(tokenizer), options, cache=tmp_path / "cache")
    assert 0 < cut.cut_rows == seen.rows_cut(length)
    assert cut.tokens == seen.tokens_kept(length)


def test_without_a_tokenizer_tokens_come_from_bytes_and_it_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": "é" * 200, "completion": "b" * 40}] * 3 + [{"prompt": "c", "completion": "d"}]
    seen = read_data(run_of(write_rows(tmp_path / "rows.jsonl", rows), validation=None), None)
    assert seen.measured_by == "bytes"
    assert seen.longest == 400 / 4 + 40 / 4 + 2 * dataset.TURN_TOKENS
    assert seen.duplicates == 2
    assert seen.trained == 3 * (10 + dataset.TURN_TOKENS) + 1 + dataset.TURN_TOKENS


def test_a_large_set_is_sampled_evenly_and_scaled(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows_of(400))
    whole = read_data(run_of(path, validation=None), tokenizer)
    monkeypatch.setattr(dataset, "SAMPLE", 90)
    told: list[tuple[int, int]] = []
    some = read_data(run_of(path, validation=None), tokenizer, progress=lambda done, of: told.append((done, of)))
    assert (some.encoded, some.rows, some.sampled, whole.sampled) == (90, 400, True, False)
    assert some.tokens == pytest.approx(whole.tokens, rel=0.03)
    assert some.trained_tokens == pytest.approx(whole.trained_tokens, rel=0.03)
    assert told[-1] == (90, 90)


def test_leaks_into_validation_are_counted(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows_of(10))
    apart = write_rows(tmp_path / "validation.jsonl", rows_of(4, first=8))
    seen = read_data(run_of(train, validation=str(apart)), None)
    assert (seen.leaked, seen.validation_rows) == (2, 4)
    assert "data-leak" in {finding.code for finding in seen.findings}


def test_rows_that_would_stop_training_are_an_error_here(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows_of(10))
    path.write_text(path.read_text(encoding="utf-8") + "{not json\n", encoding="utf-8")
    levels = {finding.code: finding.level for finding in read_data(run_of(path), None).findings}
    assert levels["data-bad-rows"] == "error"
    skipping = read_data(run_of(path, on_bad="skip"), None)
    assert "data-bad-rows" not in {finding.code for finding in skipping.findings}


def test_conversations_for_a_base_without_a_template_are_an_error_and_estimated(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "base", template=None)
    path = write_rows(tmp_path / "rows.jsonl", rows_of(10))
    seen = read_data(run_of(path), tmp_path / "base")
    assert seen.measured_by == "bytes"
    (error,) = [finding for finding in seen.findings if finding.level == "error"]
    assert "no chat template" in error.message


def test_labels_are_seen_and_count_as_one_trained_token_a_row(tmp_path: Path, tokenizer: Path) -> None:
    seen = read_data(run_of(write_rows(tmp_path / "rows.jsonl", labelled_rows(12))), tokenizer)
    assert (seen.classification, seen.labels, seen.trained) == (True, 3, seen.rows)
    as_text = read_data(run_of(tmp_path / "rows.jsonl", labels_as="text"), tokenizer)
    assert as_text.labels == 0
    assert as_text.trained > as_text.rows


def test_percentiles_are_lengths_that_occur(tmp_path: Path, tokenizer: Path) -> None:
    seen = read_data(run_of(write_rows(tmp_path / "rows.jsonl", rows_of(40))), tokenizer)
    for share in (0.5, 0.95, 1.0):
        assert seen.percentile(share) in seen.lengths
        assert np.mean(seen.lengths <= seen.percentile(share)) >= share
    assert seen.percentile(1.0) == seen.longest


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_data(run_of(tmp_path / "rows.jsonl"), None)
