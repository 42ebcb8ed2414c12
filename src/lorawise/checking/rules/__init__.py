"""Every rule: importing this fills the registry."""

from lorawise.checking.rules import (
    adapters,
    arguments,
    engines,
    files,
    fits,
    ranks,
    rows,
    runs,
    scaling,
    template,
    trainer,
)
from lorawise.checking.rules.rule import RULES, Fix, Hit, Rule

__all__ = [
    "RULES",
    "Fix",
    "Hit",
    "Rule",
    "adapters",
    "arguments",
    "engines",
    "files",
    "fits",
    "ranks",
    "rows",
    "runs",
    "scaling",
    "template",
    "trainer",
]
