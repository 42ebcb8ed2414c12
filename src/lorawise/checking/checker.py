"""`lorawise.check`: paths in, a report out. Reads, changes nothing, runs nothing, fetches nothing."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lorawise.base.findings import Finding
from lorawise.checking.choices import Choices, Comments, read_choices, read_comments
from lorawise.checking.files import MAX_NOTEBOOK, Unreadable, read_text
from lorawise.checking.reading import Subject, subjects
from lorawise.checking.report import Report, in_order
from lorawise.checking.rules import RULES, Fix, Hit, Rule

COMMENTED = (".py", ".ipynb", ".yaml", ".yml")


def check(
    *paths: str | Path,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    strict: bool = False,
    base: str | Path | None = None,
) -> Report:
    """Findings over run files, other tools' configs, scripts, notebooks, rows, run folders and adapters.

    select, ignore   codes (`LW105`) or their beginnings (`LW1`), over the nearest `[tool.lorawise.check]`
    strict           warnings make `failed` true too
    base             a folder with the base's weights, to see what merging in 16 bit would lose
    Raises `ConfigError` for a code or config that cannot be meant; whatever is wrong with a path is a finding.
    """
    start = Path(paths[0]) if paths else Path.cwd()
    choices = read_choices(start if start.exists() else Path.cwd(), select=select, ignore=ignore, strict=strict)
    checking = _Checking(choices)
    for subject in subjects(*map(Path, paths), base=None if base is None else Path(base)):
        checking.look_at(subject)
    return checking.report()


class _Checking:
    """What one pass has met so far."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.rules: dict[type, list[Rule]] = {}
        for code in sorted(RULES):
            if choices.takes(code):
                self.rules.setdefault(RULES[code].subject, []).append(RULES[code])
        self.findings: list[Finding] = []
        self.fixes: dict[str, list[Fix]] = {}
        self.files: set[str] = set()
        self.subjects = 0
        self.silenced = 0

    def look_at(self, subject: Subject) -> None:
        path = str(vars(subject)["path"])
        if self.choices.leaves_out(path):
            return
        self.files.add(path)
        self.subjects += 1
        for rule in self.rules.get(type(subject), ()):
            for hit in rule.check(subject):
                self._take(rule, hit, path)

    def _take(self, rule: Rule, hit: Hit, path: str) -> None:
        where = hit.path or path
        if _comments(where).silence(rule.code, hit.line):
            self.silenced += 1
            return
        level = self.choices.level(rule.code, hit.level or rule.level)
        self.findings.append(
            Finding(code=rule.code, level=level, message=hit.message, cure=hit.cure, path=_shown(where), line=hit.line)
        )
        if hit.fix is not None and hit.fix not in self.fixes.get(where, ()):
            self.fixes.setdefault(where, []).append(hit.fix)

    def report(self) -> Report:
        return Report(
            findings=in_order(self.findings),
            fixes={path: tuple(fixes) for path, fixes in self.fixes.items()},
            files=len(self.files),
            subjects=self.subjects,
            silenced=self.silenced,
            strict=self.choices.strict,
        )


@cache
def _comments_at(path: str, stamp: float) -> Comments:
    try:
        return read_comments(read_text(Path(path), MAX_NOTEBOOK if path.endswith(".ipynb") else 2**20))
    except Unreadable:
        return Comments(lines={})


def _comments(path: str) -> Comments:
    if not path.lower().endswith(COMMENTED):
        return Comments(lines={})
    try:
        return _comments_at(path, os.stat(path).st_mtime)
    except OSError:
        return Comments(lines={})


def _shown(path: str) -> str:
    """Relative to here where it lies below, as a person would type it."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here) if os.path.isabs(path) else path
