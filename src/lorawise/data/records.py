"""Files → records, one at a time, each with the line it stands on; bad ones come out too, as the reason.

    JSONL    one object a line                     JSON      an array of objects (or JSONL under another name)
    CSV/TSV  a header, then one record each        Parquet   row numbers from 1, through pyarrow

JSONL, JSON and CSV may be gzipped (`.jsonl.gz`). A byte order mark, CRLF and blank lines are fine. Memory is bounded: a
line longer than `MAX_LINE` is passed over in pieces and reported; a JSON array must fit `MAX_ARRAY`.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from lorawise.data.causes import BadRow
from lorawise.data.jsonvalue import check_depth, parse_json, shorten
from lorawise.data.rows import Where

MAX_LINE = 32 * 2**20  # bytes: some 8 million tokens, beyond any window
MAX_ARRAY = 2**30  # bytes: an array is parsed from memory
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_BATCH = 256  # Parquet rows held at a time
_DELIMITERS = ",\t;"
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A value, not yet known to be a row; or the `BadRow` that says why there is none."""

    where: Where
    value: object


def read_records(path: Path, name: str) -> Iterator[Record]:
    """Every record of one file. `name` is the path as the person wrote it, for messages."""
    line = 0
    try:
        for record in READERS[data_suffix(path)](path, name):
            line = record.where.line
            yield record
    except (OSError, EOFError, zlib.error) as problem:
        yield Record(where=Where(path=name, line=line + 1), value=BadRow("unreadable", f"cannot be read: {problem}"))


def data_suffix(path: Path) -> str:
    """`.jsonl` of `a.jsonl` and of `a.jsonl.gz`."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _read_json(path: Path, name: str) -> Iterator[Record]:
    with _open(path) as handle:
        start = handle.read(4096).removeprefix(_BOM).lstrip()[:1]
    with _open(path) as handle:
        yield from _read_array(handle, name) if start == b"[" else _read_lines(handle, name)


def _read_lines(handle: BinaryIO, name: str) -> Iterator[Record]:
    for number, line in _lines(handle):
        where = Where(path=name, line=number)
        try:
            text = _decoded_line(line)
            if text.strip():
                yield Record(where=where, value=parse_json(text))
        except BadRow as bad:
            yield Record(where=where, value=bad)


def _read_array(handle: BinaryIO, name: str) -> Iterator[Record]:
    raw = handle.read(MAX_ARRAY + 1)
    try:
        if len(raw) > MAX_ARRAY:
            raise BadRow("too-long", f"a JSON array of more than {MAX_ARRAY // 2**20} MiB; write it as JSONL")
        text = _decoded(raw.removeprefix(_BOM))
    except BadRow as bad:
        yield Record(where=Where(path=name, line=1), value=bad)
        return
    line, counted = 1, 0
    for position, value in _elements(text):
        line += text.count("\n", counted, position)
        counted = position
        yield Record(where=Where(path=name, line=line), value=value)


def _elements(text: str) -> Iterator[tuple[int, object]]:
    """(position, value) of each element. One that does not parse is the last: what follows it has no beginning."""
    decoder = json.JSONDecoder()
    at = _past_space(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        at += 1
    else:
        while True:
            start = at
            try:
                value, at = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as problem:
                said = problem.msg if isinstance(problem, json.JSONDecodeError) else "nested too deep or a vast number"
                yield start, BadRow("not-json", f"not JSON: {said}: {shorten(text[start : start + 80])}")
                return
            try:
                check_depth(text[start:at], value)
            except BadRow as bad:
                value = bad
            yield start, value
            at = _past_space(text, at)
            after, at = text[at : at + 1], _past_space(text, at + 1)
            if after == "]":
                break
            if after != ",":
                found = repr(after) if after else "the end of the file"
                yield at - 1, BadRow("not-json", f"not JSON: {found} where ',' or ']' belongs")
                return
    if text[at:].strip():
        yield at, BadRow("not-json", f"not JSON: text after the end of the array: {shorten(text[at : at + 80])}")


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _read_csv(path: Path, name: str) -> Iterator[Record]:
    """Records with the line they start on. A column may hold JSON as text (`messages`, `tools`)."""
    header: list[str] = []
    with _open(path) as handle:
        for line, cells in _csv_rows(handle):
            where = Where(path=name, line=line)
            if isinstance(cells, BadRow):
                yield Record(where=where, value=cells)
            elif not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "" in header:
                    reason = BadRow("not-csv", f"the header {', '.join(map(repr, header))} needs one name a column")
                    yield Record(where=where, value=reason)
                    return
            elif len(cells) != len(header):
                reason = BadRow("not-csv", f"{len(cells)} fields under {len(header)} columns ({', '.join(header)})")
                yield Record(where=where, value=reason)
            else:
                yield Record(where=where, value=dict(zip(header, map(_cell, header, cells), strict=True)))


def _cell(column: str, cell: str) -> str | int:
    """CSV has only texts; a label written as a whole number is class n, as it would be in JSON."""
    return int(cell) if column == "label" and _WHOLE.fullmatch(cell) else cell


def _csv_rows(handle: BinaryIO) -> Iterator[tuple[int, list[str] | BadRow]]:
    """(line it starts on, cells) of each record that is not blank."""
    lines = _CsvLines(handle)
    unlimited = csv.field_size_limit(MAX_LINE)
    try:
        reader = csv.reader(lines, delimiter=max(_DELIMITERS, key=lines.first.count), strict=True)
        while True:
            start = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                yield start, BadRow("not-csv", f"not CSV: {problem}")
            except BadRow as bad:
                yield start, bad
            else:
                if any(cell.strip() for cell in cells):
                    yield start, cells
    finally:
        csv.field_size_limit(unlimited)


class _CsvLines:
    """Text lines that outlive a bad one: a generator would end at the first it raises."""

    def __init__(self, handle: BinaryIO) -> None:
        self._lines = _lines(handle)
        self._pending = next(self._lines, None)
        self.number = 0  # of the last line given
        self.first = "" if self._pending is None else self._pending[1][:4096].decode(errors="replace")

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        pending, self._pending = self._pending, None
        self.number, line = pending or next(self._lines)
        return _decoded_line(line)


def _read_parquet(path: Path, name: str) -> Iterator[Record]:
    """Rows with nulls left out: a column of structs holds every key any row has."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(where=Where(path=name, line=number), value=without_nulls(value))
    except pyarrow.ArrowException as problem:
        bad = BadRow("unreadable", f"not a whole Parquet file: {problem}")
        yield Record(where=Where(path=name, line=number + 1), value=bad)


def without_nulls(value: object) -> object:
    match value:
        case Mapping():
            return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
        case list():
            return [without_nulls(inner) for inner in value]
        case _:
            return value


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, line) without a byte order mark. Of a line beyond `MAX_LINE` comes the beginning, one byte too long."""
    number = 0
    while line := handle.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while len(line) > MAX_LINE and rest and not rest.endswith(b"\n"):
            rest = handle.readline(2**20)
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _decoded_line(raw: bytes) -> str:
    if len(raw) > MAX_LINE:
        raise BadRow("too-long", f"a line of more than {MAX_LINE // 2**20} MiB")
    return _decoded(raw)


def _decoded(raw: bytes) -> str:
    if raw.startswith(_WIDE_BOMS):
        raise BadRow("not-utf8", "the file is UTF-16, not UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        raise BadRow("not-utf8", f"byte 0x{raw[problem.start]:02x} at offset {problem.start} is not UTF-8") from None


READERS: Mapping[str, Callable[[Path, str], Iterator[Record]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
