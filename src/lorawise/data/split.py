"""Train and validation, with no example on both sides.

Rows with one fingerprint (equal but for case and white space) form a group, and a group is never parted. Groups are
ranked by sha256(seed, fingerprint) and the first go to validation until it is full: which rows those are depends on the
seed and the contents alone, not on the order of the file.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorawise.base.errors import ConfigError, DataError
from lorawise.base.files import digest_text
from lorawise.base.findings import Finding
from lorawise.data.rows import Row, RowSet

FEW = 30  # below this one row moves an exact-match score by more than 3 points


@dataclass(frozen=True, kw_only=True)
class Split:
    """Both sides, each in file order; validation is None when none was asked for."""

    train: RowSet
    validation: RowSet | None
    findings: tuple[Finding, ...] = ()


def split_validation(rows: RowSet, validation: RowSet | float | int | None, seed: int = 0) -> Split:
    """Part `rows`, or hold a validation set of its own against them.

    validation   rows read from a file; a share in (0, 1); a count of rows; or None
    Raises `ConfigError` for a share or count that cannot be meant, `DataError` when a side would be empty.
    """
    if validation is None:
        return Split(train=rows, validation=None)
    if isinstance(validation, RowSet):
        findings = (*_leaks(rows, validation), *_too_few(validation))
        return Split(train=rows, validation=validation, findings=findings)
    chosen = _choose(rows, _count(validation, len(rows)), seed)
    held_out = RowSet(rows=tuple(row for i, row in enumerate(rows) if i in chosen))
    train = replace(rows, rows=tuple(row for i, row in enumerate(rows) if i not in chosen))
    return Split(train=train, validation=held_out, findings=tuple(_too_few(held_out)))


def _count(wanted: float | int, total: int) -> int:
    """Rows to hold out, at least one."""
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)):
        raise ConfigError(f"validation is {wanted!r}", expected="a file, a share such as 0.05, or a count of rows")
    if isinstance(wanted, float) and not 0 < wanted < 1:
        cure = f"write {int(wanted)} for a count of rows" if wanted >= 1 and wanted.is_integer() else ""
        raise ConfigError(f"validation is {wanted}", expected="a share between 0 and 1", cure=cure)
    if isinstance(wanted, int) and not 0 < wanted < total:
        raise ConfigError(f"validation asks for {wanted} of {total} rows", expected=f"1 to {total - 1} rows")
    return wanted if isinstance(wanted, int) else max(1, round(wanted * total))


def _choose(rows: RowSet, wanted: int, seed: int) -> frozenset[int]:
    """Indices of whole groups, in the order of their rank, that fit into `wanted` rows."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.fingerprint].append(i)
    ranked = sorted(groups, key=lambda fingerprint: digest_text(str(seed), fingerprint))
    chosen: list[int] = []
    for fingerprint in ranked:
        if len(chosen) + len(groups[fingerprint]) <= wanted:
            chosen += groups[fingerprint]
    if not chosen or len(chosen) == len(rows):
        raise DataError(
            f"{len(rows)} rows ({len(groups)} distinct) cannot be parted into train and {wanted} for validation",
            expected="duplicates on one side only, and rows on both",
            cure="take the duplicates out, change the share, or give a validation file",
        )
    return frozenset(chosen)


def _leaks(train: RowSet, validation: RowSet) -> Iterator[Finding]:
    known = {row.fingerprint for row in train}
    leaked = [row for row in validation if row.fingerprint in known]
    if leaked:
        share = f"{len(leaked)} of {len(validation)}"
        yield Finding(
            code="data-leak",
            level="warning",
            message=f"{share} validation rows also stand in train (lines {_lines(leaked)}): their score is flattered",
            cure="take them out of one of the two",
            path=leaked[0].where.path,
            line=leaked[0].where.line,
        )


def _lines(rows: Sequence[Row]) -> str:
    shown = ", ".join(str(row.where.line) for row in rows[:5])
    return shown + (" …" if len(rows) > 5 else "")


def _too_few(validation: RowSet) -> Iterator[Finding]:
    if len(validation) < FEW:
        yield Finding(
            code="data-few-validation",
            level="warning",
            message=f"validation holds {len(validation)} row(s): its loss and scores are noisy",
            cure=f"hold out {FEW} rows or more",
        )
