"""What the rest of the project sees of a data file: frozen rows that know where they stood.

A `Row` is one training example in one of four kinds:

    messages        a conversation (system, user, assistant, tool), with tools; needs a chat template
    completion      prompt and answer as two strings. A base model without template trains on prompt + completion as
                    they stand; with a template the row is a conversation of two turns (`as_messages`)
    text            plain text, every token trained
    classification  text (maybe a pair) and label

`digest` is the exact content, for provenance and caches. `fingerprint` is the content with case folded and runs of
white space made one space: two rows with one fingerprint are duplicates, and a validation split keeps them together.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from lorawise.base.errors import ConfigError, DataError
from lorawise.base.files import digest_text
from lorawise.base.findings import Finding

Message = Mapping[str, Any]
Kind = Literal["messages", "completion", "text", "classification"]
Label = int | str

MAX_WEIGHT = 10_000  # times a row is seen an epoch


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from: a file, a folder, a pattern (`data/*.jsonl`) or a hub id (`owner/name`).

    weight   how often a row of it is seen per epoch: 2 means twice, 0.5 means every second epoch on average
    split    of a hub data set, with slicing (`train[:1000]`); files have none
    subset   the configuration of a hub data set that has several
    format   the name of a row format; None recognises each row by its keys
    """

    path: str
    weight: float = 1.0
    split: str = "train"
    subset: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("a data source has an empty path", cure="name a file, a folder or a hub id")
        if isinstance(self.weight, bool) or not 0 < self.weight <= MAX_WEIGHT:
            raise ConfigError(
                f"weight {self.weight!r} of {self.path} is not a number above 0 and up to {MAX_WEIGHT:,}",
                cure="1 is the neutral",
            )


@dataclass(frozen=True, kw_only=True, order=True)
class Where:
    """File and line (the line a CSV record starts on; for Parquet and hub data the row number, from 1)."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example. Which fields are filled follows from `kind`; the rest keep their defaults.

    messages       dicts with `role` and `content` (always a string; empty beside `tool_calls`), and what else the
                   template may read: `tool_calls` (arguments as objects), `tool_call_id`, `name`, `reasoning_content`
    trained_turns  indices into `messages` of the assistant turns that may be trained, in order, never empty
    """

    kind: Kind
    where: Where
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] | None = None
    trained_turns: tuple[int, ...] = ()
    prompt: str = ""
    completion: str = ""
    text: str = ""
    text_pair: str | None = None
    label: Label | None = None
    weight: float = 1.0

    def as_messages(self) -> tuple[Message, ...]:
        """The conversation: of a messages row itself, of a completion row its two turns.

        White space that only joined the two strings goes: what ends the prompt, and one space that starts the answer.
        """
        if self.kind == "messages":
            return self.messages
        if self.kind != "completion":
            raise DataError(f"{self.where}: a {self.kind} row is not a conversation")
        joined_by_space = self.completion[:1] == " " and not self.completion[1:2].isspace()
        answer = self.completion[1:] if joined_by_space else self.completion
        return ({"role": "user", "content": self.prompt.rstrip()}, {"role": "assistant", "content": answer})

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, without where it stood and how often it is seen."""
        return digest_text(
            self.kind,
            _canonical(self.messages),
            _canonical(self.tools),
            _canonical(self.trained_turns),
            self.prompt,
            self.completion,
            self.text,
            _canonical([self.text_pair, self.label]),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two rows that differ only in case and white space; sha256."""
        if self.kind in ("messages", "completion"):
            return digest_text("turns", _canonical(_normal(self.as_messages())), _canonical(_normal(self.tools)))
        return digest_text(self.kind, _canonical(_normal([self.text, self.text_pair, self.label])))


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Rows in the order they were read, with what reading met.

    skipped   rows left out under `on_bad="skip"`, by cause
    problems  the first of them, each with file and line
    findings  what a person should know of rows that were kept (mixed formats, turns that train nothing)
    """

    rows: tuple[Row, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Finding, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @property
    def kinds(self) -> Mapping[Kind, int]:
        return Counter(row.kind for row in self.rows)

    @cached_property
    def digest(self) -> str:
        """sha256 of contents, order and weights: equal exactly when training would see the same data."""
        return rows_digest(self.rows)


def rows_digest(rows: Iterable[Row]) -> str:
    """sha256 over the digests and weights of rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.digest} {float(row.weight).hex()}\n".encode())
    return digest.hexdigest()


def class_labels(rows: Sequence[Row]) -> tuple[Label, ...]:
    """The distinct labels of classification rows, sorted: position i is class i of the head.

    Raises `DataError` when numbers and names are mixed, or when there is only one class.
    """
    labels = {row.label for row in rows if row.label is not None}
    numbers = sorted(label for label in labels if isinstance(label, int))
    names = sorted(label for label in labels if isinstance(label, str))
    if numbers and names:
        raise DataError(
            f"labels are numbers in some rows ({numbers[0]}) and names in others ('{names[0]}')",
            cure="write every label the same way",
        )
    if len(labels) < 2:
        raise DataError(
            f"classification rows hold {len(labels)} distinct label(s)", expected="at least two classes to tell apart"
        )
    return tuple(numbers) or tuple(names)


def _canonical(value: object) -> str:
    """JSON in the order of the keys as written: a template renders arguments in that order too."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_object)


def _as_object(value: object) -> dict[str, Any]:
    """What `json` does not know: another mapping. `TypeError` for a date, bytes, a decimal (Parquet has them)."""
    if not isinstance(value, Mapping):
        raise TypeError(f"a {type(value).__name__}")
    return dict(value)


def _normal(value: object) -> object:
    match value:
        case str():
            return " ".join(value.casefold().split())
        case Mapping():
            return {key: _normal(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [_normal(inner) for inner in value]
        case _:
            return value
