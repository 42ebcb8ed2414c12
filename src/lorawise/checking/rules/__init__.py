"""Every rule: importing this fills the registry."""

from lorawise.checking.rules import adapters, files, fits, ranks, rows, runs, scaling, template, trainer
from lorawise.checking.rules.rule import RULES, Fix, Hit, Rule

__all__ = [
    "RULES",
    "Fix",
    "Hit",
    "Rule",
    "adapters",
    "files",
    "fits",
    "ranks",
    "rows",
    "runs",
    "scaling",
    "template",
    "trainer",
]
