"""The registry of rules: a rule is a generator of hits over one kind of subject; its docstring is its manual page.

@rule("LW105", "error", Setting)
def high_scaling_with_high_rate(setting):
    \"\"\"One line that names the fault. … why, cure, source.\"\"\"
    yield Hit(message=…, cure=…, line=…)
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from lorawise.base.findings import Level
from lorawise.base.registry import Registry

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Fix:
    """`old` becomes `new` at a place of the file. `column` counts bytes from 0, as Python's syntax tree does."""

    line: int
    column: int
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Hit:
    """What a rule saw. `level` and `path` only where they differ from the rule's and the subject's."""

    message: str
    cure: str
    line: int | None = None
    level: Level | None = None
    path: str | None = None
    fix: Fix | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    code: str
    name: str
    level: Level
    subject: type
    check: Callable[[Any], Iterator[Hit]]

    @property
    def manual(self) -> str:
        return inspect.getdoc(self.check) or ""

    @property
    def title(self) -> str:
        return self.manual.partition("\n")[0].rstrip(".")


RULES: Registry[Rule] = Registry("rule")


def rule(
    code: str, level: Level, subject: type[S]
) -> Callable[[Callable[[S], Iterator[Hit]]], Callable[[S], Iterator[Hit]]]:
    def add(check: Callable[[S], Iterator[Hit]]) -> Callable[[S], Iterator[Hit]]:
        name = check.__name__.replace("_", "-")
        RULES.register(code)(Rule(code=code, name=name, level=level, subject=subject, check=check))
        return check

    return add
