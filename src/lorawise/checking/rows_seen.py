"""Rows of a data file as the rules see them: read with our own reader, up to a bound in rows and in seconds.

With a tokenizer at hand (a local base) they are encoded as training would, so that masks, ends and cuts are counted and
not guessed.
"""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorawise.base.errors import DataError, ModelError
from lorawise.checking.setting import Setting
from lorawise.data.causes import CURES, BadRow
from lorawise.data.encoded import MUTE
from lorawise.data.encoder import EncodeOptions, Encoder
from lorawise.data.formats import parse_row
from lorawise.data.records import data_suffix, read_records
from lorawise.data.rows import Row
from lorawise.data.tokenizer import ChatTokenizer

MAX_ROWS = 50_000
MAX_SECONDS = 2.0
MAX_BAD = 20  # of which the text is kept
MAX_ENCODED = 500  # rows shown to the tokenizer
DATA_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Bad:
    line: int
    cause: str
    found: str

    @property
    def cure(self) -> str:
        return CURES.get(self.cause, "mend it, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the tokenizer made of the first rows. `mute` are rows without a trained token, `cut` those cut short."""

    rows: int
    trained_a_row: float
    mute: tuple[Row, ...] = ()
    cut: tuple[Row, ...] = ()
    two_bos: tuple[Row, ...] = ()
    ends_trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Data:
    """One file of rows, with the rows it is held against (`validation`) when a run file names them."""

    path: str
    rows: tuple[Row, ...]
    bad: tuple[Bad, ...] = ()
    bad_count: int = 0
    whole: bool = True
    role: str = "train"
    setting: Setting | None = None
    validation: "Data | None" = None
    held_out: int | None = None  # rows a share of these would give
    tokens: Tokens | None = None
    parameters: int | None = None  # of the adapter that will train on them, where the base is at hand
    formats: Counter[str] = field(default_factory=Counter)


def holds_rows(path: Path) -> bool:
    """Whether the first records of a data file are rows of a format we know."""
    for record in itertools.islice(read_records(path, str(path)), 3):
        try:
            parse_row(record.value, record.where)
        except (BadRow, AttributeError, TypeError):
            continue
        return True
    return False


def read_data(path: Path, *, name: str | None = None, format: str | None = None, role: str = "train") -> Data:
    """Every row up to the bounds; bad ones are counted, and the first kept with their line."""
    rows: list[Row] = []
    bad: list[Bad] = []
    formats: Counter[str] = Counter()
    count, whole = 0, True
    deadline = time.monotonic() + MAX_SECONDS
    for number, record in enumerate(read_records(path, name or str(path)), 1):
        if number > MAX_ROWS or (number > 1 and time.monotonic() > deadline):
            whole = False
            break
        try:
            if isinstance(record.value, BadRow):
                raise record.value
            row, called = parse_row(record.value, record.where, format)
        except BadRow as refused:
            count += 1
            if len(bad) < MAX_BAD:
                bad.append(Bad(line=record.where.line, cause=refused.cause, found=refused.found))
            continue
        rows.append(row)
        formats[called] += 1
    return Data(
        path=name or str(path),
        rows=tuple(rows),
        bad=tuple(bad),
        bad_count=count,
        whole=whole,
        role=role,
        formats=formats,
    )


def is_data(path: Path) -> bool:
    return data_suffix(path) in DATA_SUFFIXES


def encoded(rows: Sequence[Row], folder: Path, max_length: int) -> Tokens | None:
    """What training would see of the first rows; None when the folder has no tokenizer, or no template they need."""
    shown = [row for row in rows[:MAX_ENCODED] if row.kind != "classification"]
    if not shown or not (folder / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = ChatTokenizer.open(folder)
        encoder = Encoder(tokenizer, EncodeOptions(max_length=max_length))
        done, refused = encoder.encode(shown)
    except (DataError, ModelError):
        return None
    stops = {*tokenizer.stop_ids, *encoder.terminators}
    bos = tokenizer.bos_id
    return Tokens(
        rows=len(shown),
        mute=tuple(shown[each.row] for each in refused if each.code in MUTE),
        cut=tuple(shown[row.row] for row in done if row.cut),
        trained_a_row=sum(row.trained_tokens for row in done) / max(1, len(done)),
        two_bos=tuple(shown[r.row] for r in done if bos is not None and len(r) > 1 and r.ids[0] == r.ids[1] == bos),
        ends_trained=not stops or any(stops & set(row.ids[row.trained].tolist()) for row in done),
    )
