"""Sources → rows. Every problem is found in one pass, with file and line; then the run stops, or the rows are skipped.

Formats are recognised row by row, so one file may mix conversations, prompt/completion and plain text (a finding says
so). Classification rows train another head and stand alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from lorawise.base.errors import ConfigError, DataError, nearest
from lorawise.base.findings import Finding
from lorawise.data.causes import CURES, BadRow
from lorawise.data.formats import FORMATS, parse_row
from lorawise.data.records import Record
from lorawise.data.rows import Row, RowSet, Source
from lorawise.data.sources import is_hub_id, source_records

OnBad = Literal["stop", "skip"]
SHOWN = 20  # problems printed before "and N more"


def read_rows(
    sources: Source | str | Path | Sequence[Source | str | Path],
    *,
    format: str | None = None,
    on_bad: OnBad = "stop",
) -> RowSet:
    """The rows of all sources in order. `format` names it for every source that names none itself.

    Raises `DataError` with up to 20 problems when a row is bad (under "skip" such rows are left out and counted), when
    a source does not exist, or when no row is left.
    """
    on_bad = bad_rows(on_bad)
    listed = [_as_source(s, format) for s in ([sources] if isinstance(sources, (Source, str, Path)) else sources)]
    if not listed:
        raise DataError("no data source is given", cure="name a file, a folder or a hub id under data.train")
    for source in listed:
        if source.format is not None:
            _ = FORMATS[source.format]
    reading = _Reading(keep_on=on_bad == "skip")
    for source in listed:
        reading.read(source, source_records(source))
    return reading.finish(listed)


def bad_rows(word: str) -> OnBad:
    """What to do with a row that cannot be used, from what a person wrote; `ConfigError` for another word."""
    known: tuple[OnBad, ...] = get_args(OnBad)
    for choice in known:
        if word == choice:
            return choice
    raise ConfigError(f"on_bad is {word!r}", cure=nearest(str(word), known))


class _Reading:
    """What one pass over the sources has met so far."""

    def __init__(self, *, keep_on: bool) -> None:
        self.keep_on = keep_on
        self.rows: list[Row] = []
        self.problems: list[Finding] = []
        self.causes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.findings: list[Finding] = []

    def read(self, source: Source, records: Iterable[Record]) -> None:
        any_record = False
        for record in records:
            any_record = True
            try:
                if isinstance(record.value, BadRow):
                    raise record.value
                row, name = parse_row(record.value, record.where, source.format)
            except BadRow as bad:
                self._refuse(record, bad)
                continue
            self.formats[name] += 1
            if self.keep_on or not self.causes:
                self.rows.append(row if source.weight == 1 else replace(row, weight=float(source.weight)))
        if not any_record:
            raise DataError(f"{source.path} is empty", expected="at least one row")
        if is_hub_id(source):
            note = f"{self.formats.total()} rows come from the hub data set {source.path}, split {source.split}"
            self.findings.append(Finding(code="data-hub", level="note", message=note, path=source.path))

    def finish(self, sources: Sequence[Source]) -> RowSet:
        names = ", ".join(source.path for source in sources)
        if self.causes and not self.keep_on:
            raise DataError(self._told(f"{self.causes.total()} bad row(s) in {names}"), cure=self._cures())
        if not self.rows:
            raise DataError(self._told(f"no row of {names} can be used"), cure=self._cures())
        _refuse_mixed_tasks(self.rows)
        if self.causes:
            self.findings.append(_skipped(self.causes, len(self.rows)))
        self.findings += _kept_findings(self.rows, self.formats)
        return RowSet(
            rows=tuple(self.rows),
            skipped=dict(self.causes),
            problems=tuple(self.problems),
            findings=tuple(self.findings),
        )

    def _refuse(self, record: Record, bad: BadRow) -> None:
        self.causes[bad.cause] += 1
        if len(self.problems) < SHOWN:
            where = record.where
            code = f"data-{bad.cause}"
            finding = Finding(code=code, level="error", message=bad.found, path=where.path, line=where.line)
            self.problems.append(finding)

    def _told(self, head: str) -> str:
        more = self.causes.total() - len(self.problems)
        return "\n  ".join([head, *map(str, self.problems), *([f"and {more} more"] if more else [])])

    def _cures(self) -> str:
        return "\n    ".join([*(CURES[cause] for cause in self.causes), "or leave such rows out: data.on_bad: skip"])


def _as_source(source: Source | str | Path, format: str | None) -> Source:
    known = source if isinstance(source, Source) else Source(path=str(source))
    return replace(known, format=format) if known.format is None and format else known


def _refuse_mixed_tasks(rows: Sequence[Row]) -> None:
    classified = [row for row in rows if row.kind == "classification"]
    if classified and len(classified) < len(rows):
        other = next(row for row in rows if row.kind != "classification")
        raise DataError(
            f"{classified[0].where} is text with a label, {other.where} is {other.kind}: they train different heads",
            cure="train on one of them, or name the format with data.format",
        )


def _skipped(causes: Counter[str], kept: int) -> Finding:
    listed = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    message = f"{causes.total()} bad row(s) were skipped ({listed}); {kept} are left"
    return Finding(code="data-skipped", level="warning", message=message, cure="mend or delete them")


def _kept_findings(rows: Sequence[Row], formats: Counter[str]) -> Iterator[Finding]:
    if len(formats) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in formats.most_common())
        yield Finding(code="data-mixed-formats", level="note", message=f"rows are in several formats: {listed}")
    open_ended = [row for row in rows if row.kind == "messages" and row.messages[-1]["role"] != "assistant"]
    if open_ended:
        yield Finding(
            code="data-open-ended",
            level="note",
            message=f"{len(open_ended)} conversation(s) do not end with the assistant; its earlier turns are trained",
            path=open_ended[0].where.path,
            line=open_ended[0].where.line,
        )
    repeated = Counter(row.digest for row in rows)
    copies = len(rows) - len(repeated)
    if copies:
        second = _first_copy(rows)
        yield Finding(
            code="data-duplicates",
            level="note",
            message=f"{copies} row(s) repeat an earlier one to the letter and are trained as often as they stand",
            path=second.where.path,
            line=second.where.line,
        )


def _first_copy(rows: Sequence[Row]) -> Row:
    seen: set[str] = set()
    for row in rows:
        if row.digest in seen:
            return row
        seen.add(row.digest)
    raise ValueError("no row repeats another")
