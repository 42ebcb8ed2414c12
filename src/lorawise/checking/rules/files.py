"""LW0xx: files that could not be looked at, or only in part. The readers find these; the rules here are their pages."""

from collections.abc import Iterator
from dataclasses import dataclass

from lorawise.checking.rules.rule import Hit, rule


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What a reader met: the code of the rule that tells it, and what was found."""

    code: str
    path: str
    found: str
    cure: str = ""
    line: int | None = None

    def hit(self) -> Hit:
        return Hit(message=self.found, cure=self.cure, line=self.line)


def _told(trouble: Trouble, code: str) -> Iterator[Hit]:
    if trouble.code == code:
        yield trouble.hit()


@rule("LW001", "error", Trouble)
def cannot_be_read(trouble: Trouble) -> Iterator[Hit]:
    """The file cannot be read as what it is named: binary, another encoding, torn, too large, or not a file.

    Cure: the message names it.

    Source: limits of the reader (checking/files.py).
    """
    yield from _told(trouble, "LW001")


@rule("LW002", "error", Trouble)
def cannot_be_parsed(trouble: Trouble) -> Iterator[Hit]:
    """The file is not Python, YAML or JSON, or is nested or expanded beyond any honest one.

    Cure: mend the line the message names.

    Source: limits of the reader (checking/tree.py, checking/script.py).
    """
    yield from _told(trouble, "LW002")


@rule("LW003", "note", Trouble)
def nothing_known_in_it(trouble: Trouble) -> Iterator[Hit]:
    """The file was named, and holds nothing lorawise knows: no LoRA setting, rows, run or adapter.

    Cure: name the file that holds the setting.
    """
    yield from _told(trouble, "LW003")


@rule("LW004", "note", Trouble)
def only_a_part_was_read(trouble: Trouble) -> Iterator[Hit]:
    """Only the first part of a long file was looked at.

    Cure: none is needed; what is said holds for the part.
    """
    yield from _told(trouble, "LW004")


@rule("LW006", "error", Trouble)
def run_file_refused(trouble: Trouble) -> Iterator[Hit]:
    """A run file that `lorawise train` would refuse: an unknown key, a value of the wrong kind, two keys for one thing.

    Cure: the message names the nearest key.

    Source: lorawise's run file schema.
    """
    yield from _told(trouble, "LW006")
