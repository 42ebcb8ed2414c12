"""Adapters as they are named on a command line: `NAME=DIR`, `DIR`, `@NAME` of the local store; stacks `A=0.7 B=0.3`."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lorawise.base.errors import UsageError

BASE = "base"


def adapters_of(named: Sequence[str]) -> dict[str, Path]:
    """`["legal=runs/a/adapter", "@brief"]` → {"legal": …, "brief": …}; a single DIR alone is called `adapter`."""
    found: dict[str, Path] = {}
    for entry in named:
        name, equals, folder = entry.partition("=")
        if not equals and entry.startswith("@"):
            name, folder = entry[1:], entry
        elif (not equals and len(named) == 1) or Path(entry).expanduser().is_dir():
            name, folder = "adapter", entry
        if not name or not folder or name in found:
            raise UsageError(f"--adapter {entry}", expected="NAME=DIR, each name once")
        if name == BASE:
            raise UsageError(f"--adapter {entry}: '{BASE}' is the model without adapters", cure="choose another name")
        found[name] = folder_of(folder)
    return found


def folder_of(text: str) -> Path:
    """A folder, or the verified one of @NAME in the local store."""
    if not text.startswith("@"):
        return Path(text).expanduser()
    from lorawise.store.shelf import Shelf

    return Shelf.at(None).find(text.removeprefix("@"))


def stack_of(text: str) -> dict[str, float]:
    """`legal=0.7 brief=-0.3` → {"legal": 0.7, "brief": -0.3}."""
    weights: dict[str, float] = {}
    for part in text.split():
        name, _, weight = part.rpartition("=")
        with contextlib.suppress(ValueError):
            if name and name not in weights:
                weights[name] = float(weight)
                continue
        raise UsageError(f"'{part}' in the stack '{text}'", expected="NAME=WEIGHT, each name once: legal=0.7 brief=0.3")
    if not weights:
        raise UsageError("a stack names no adapter", expected="legal=0.7 brief=0.3")
    return weights


def stack_name(weights: dict[str, float]) -> str:
    """{"legal": 0.7, "brief": -0.3} → `0.7·legal-0.3·brief`."""
    return "".join(f"{weight:+g}·{name}" for name, weight in weights.items()).removeprefix("+")
