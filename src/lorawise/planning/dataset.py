"""What is true of the data: rows, tokens a row, what of them is trained, copies, and leaks into validation.

    rows ─ data room ─▶ RowSet ─ a sample, encoded as training would ─▶ lengths (n,) sorted, trained tokens

With the model's tokenizer on this machine the tokens are its own, template and masks included. Without one they are
estimated from UTF-8 bytes, and said to be. Above SAMPLE rows, a sample spread evenly over the rows is encoded and the
totals are scaled up; the counts of rows, copies and leaks are always of all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.findings import Finding
from lorawise.data.encoder import EncodeOptions, Encoder
from lorawise.data.read import read_rows
from lorawise.data.rows import Row, RowSet, Source, class_labels
from lorawise.data.split import split_validation
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.runfile import RunFile

Progress = Callable[[int, int], None]  # rows encoded, rows to encode

SAMPLE = 2_000  # rows encoded at most: a share of tokens from so many is known to about 1 %
UNCUT = 1 << 24  # longer than any row: lengths are asked before a length is chosen
BYTES_PER_TOKEN = 4.0  # of English text with a vocabulary of 32k to 256k; other scripts and code take fewer
TURN_TOKENS = 5  # what a chat template puts around a turn: role, separators, terminator


@dataclass(frozen=True, kw_only=True, eq=False)
class DataFacts:
    """
    rows, validation_rows  after the split the run file asks for
    lengths                tokens of each encoded row, uncut, ascending (n,)
    trained                trained tokens of the encoded rows together
    measured_by            the model's own tokenizer, or bytes
    classification         the rows are texts with labels
    labels                 classes, where a head learns them
    """

    rows: int
    validation_rows: int
    lengths: NDArray[np.int64]
    trained: int
    measured_by: Literal["tokenizer", "bytes"]
    duplicates: int
    leaked: int
    classification: bool = False
    labels: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def encoded(self) -> int:
        """Rows that were looked at token by token."""
        return len(self.lengths)

    @property
    def sampled(self) -> bool:
        return self.encoded < self.rows

    @cached_property
    def mean(self) -> float:
        """Tokens a row."""
        return float(self.lengths.mean())

    @property
    def tokens(self) -> int:
        """Of all training rows, uncut."""
        return round(self.mean * self.rows)

    @property
    def trained_tokens(self) -> int:
        return round(self.trained / self.encoded * self.rows)

    @property
    def trained_share(self) -> float:
        return self.trained / int(self.lengths.sum())

    @property
    def longest(self) -> int:
        return int(self.lengths[-1])

    def percentile(self, share: float) -> int:
        """The length that `share` of the rows do not exceed."""
        return int(np.quantile(self.lengths, share, method="higher"))

    def rows_cut(self, length: int) -> int:
        """Rows longer than `length`."""
        return round(float(np.mean(self.lengths > length)) * self.rows)

    def tokens_kept(self, length: int) -> int:
        return round(float(np.minimum(self.lengths, length).mean()) * self.rows)


def read_data(run: RunFile, tokenizer: Path | None, *, progress: Progress | None = None) -> DataFacts:
    """Look at the data of `run`. `tokenizer` is a folder with tokenizer.json, None to estimate from bytes.

    `DataError` when a source is missing or no row can be used. Rows that training would stop at are a finding here.
    """
    rows = _read(run, [Source(path=s.path, weight=s.weight, split=s.split, subset=s.subset) for s in run.data.train])
    held_out = run.data.validation
    apart = _read(run, [Source(path=held_out)]) if isinstance(held_out, str) else held_out
    split = split_validation(rows, apart, run.train.seed)
    leaks = [finding for finding in split.findings if finding.code == "data-leak"]
    validation = split.validation
    known = {row.fingerprint for row in split.train}
    leaked = sum(row.fingerprint in known for row in validation) if leaks and validation is not None else 0
    facts = _encoded(run, split.train, tokenizer, progress)
    return replace(
        facts,
        validation_rows=0 if validation is None else len(validation),
        duplicates=len(split.train) - len(known),
        leaked=leaked,
        findings=(*_of_rows(run, rows), *split.findings, *facts.findings),
    )


def _read(run: RunFile, sources: Sequence[Source]) -> RowSet:
    name = None if run.data.format == "auto" else run.data.format.replace("-", "_")
    return read_rows(sources, format=name, on_bad="skip")


def _of_rows(run: RunFile, rows: RowSet) -> list[Finding]:
    """What reading found; rows that were skipped here alone are an error where training would stop at them."""
    if not rows.skipped or run.data.on_bad == "skip":
        return list(rows.findings)
    first = "" if not rows.problems else f"; the first: {rows.problems[0]}"
    stops = Finding(
        code="data-bad-rows",
        level="error",
        message=f"training stops at {sum(rows.skipped.values())} row(s) that cannot be read{first}",
        cure="mend them, or leave them out with data.on_bad: skip",
    )
    return [stops, *(finding for finding in rows.findings if finding.code != "data-skipped")]


def _encoded(run: RunFile, rows: RowSet, tokenizer: Path | None, progress: Progress | None) -> DataFacts:
    labels = class_labels(rows.rows) if rows.kinds.get("classification") else ()
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int))
    sample = [rows[int(i)] for i in chosen]
    head = bool(labels) and run.data.labels_as == "head"
    options = EncodeOptions(
        max_length=UNCUT,
        train_on=run.data.train_on,
        classification="head" if head else "generated",
        labels=labels,
    )
    measured = None
    if tokenizer is not None:
        day = None if run.data.date == "auto" else datetime.fromisoformat(run.data.date)
        opened = ChatTokenizer.open(tokenizer, template=run.data.template, now=day)
        measured = _by_tokenizer(sample, Encoder(opened, options), progress)
    by_tokenizer = measured is not None and len(measured.lengths) > 0
    seen = measured if measured is not None and by_tokenizer else _by_bytes(sample, options)
    return DataFacts(
        rows=len(rows),
        validation_rows=0,
        lengths=np.sort(seen.lengths),
        trained=seen.trained,
        measured_by="tokenizer" if by_tokenizer else "bytes",
        duplicates=0,
        leaked=0,
        classification=bool(labels),
        labels=len(labels) if head else 0,
        findings=() if measured is None else measured.findings,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """Lengths (n,) and trained tokens of the rows of a sample; without those that cannot be encoded."""

    lengths: NDArray[np.int64]
    trained: int
    findings: tuple[Finding, ...] = ()


def _by_tokenizer(rows: Sequence[Row], encoder: Encoder, progress: Progress | None, chunk: int = 100) -> _Seen:
    """As training would encode them; no length where no row can be."""
    lengths: list[int] = []
    trained = 0
    refused: list[str] = []
    for first in range(0, len(rows), chunk):
        encoded, refusals = encoder.encode(rows[first : first + chunk])
        lengths += [len(row) for row in encoded]
        trained += sum(row.trained_tokens for row in encoded)
        refused += [f"{rows[first + refusal.row].where}: {refusal.found}" for refusal in refusals]
        if progress is not None:
            progress(min(first + chunk, len(rows)), len(rows))
    return _Seen(
        lengths=np.array(lengths, dtype=np.int64), trained=trained, findings=tuple(_refusals(refused, len(rows)))
    )


def _refusals(refused: Sequence[str], rows: int) -> list[Finding]:
    if not refused:
        return []
    return [
        Finding(
            code="data-not-trainable",
            level="error",
            message=f"{len(refused)} of {rows} rows that were tried cannot be trained on; the first: {refused[0]}",
            cure="mend them, or leave them out with data.on_bad: skip",
        )
    ]


def _by_bytes(rows: Sequence[Row], options: EncodeOptions) -> _Seen:
    """Tokens of rows from their UTF-8 bytes."""
    lengths, trained = [], 0
    for row in rows:
        read, learned = _texts(row, options)
        lengths.append(sum(map(_tokens, read)) + sum(map(_tokens, learned)))
        trained += sum(map(_tokens, learned)) or 1  # a label, where a head learns it
    return _Seen(lengths=np.array(lengths, dtype=np.int64), trained=trained)


def _texts(row: Row, options: EncodeOptions) -> tuple[list[str], list[str]]:
    """(what is only read, what is trained) of a row, each text a turn."""
    match row.kind:
        case "messages":
            turns = row.trained_turns if options.train_on == "all" else row.trained_turns[-1:]
            texts = [str(message.get("content") or "") for message in row.messages]
            return [t for i, t in enumerate(texts) if i not in turns], [texts[i] for i in turns]
        case "completion":
            return [row.prompt], [row.completion]
        case "classification":
            both = [row.text, *([row.text_pair] if row.text_pair else [])]
            return both, [] if options.classification == "head" else [str(row.label)]
    return [], [row.text]


def _tokens(text: str) -> int:
    return max(1, round(len(text.encode("utf-8")) / BYTES_PER_TOKEN)) + TURN_TOKENS
