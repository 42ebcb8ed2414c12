"""Adapters, stacks and merges on the same rows, each judged against the base and against what it was made of.

A combination is worth keeping when it does not lose what its parents knew. Who they are is told by the files: the
provenance of an adapter names the digests of its parents, a merged folder's record those of its adapters, a stack its
own members. What tells of no parent that was measured is compared with every adapter that was.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ModelError, UsageError
from lorawise.base.findings import Finding
from lorawise.data.read import OnBad
from lorawise.data.rows import RowSet
from lorawise.merging.companions import RECORD
from lorawise.models.load import load
from lorawise.store.peft_format import read_adapter, read_history
from lorawise.store.provenance import stored_digest
from lorawise.training.measure import Measured, measure
from lorawise.training.paired import Gap, loss_gap, match_gap

BASE = "base"
Stacks = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """`name` against `against` on the same rows; `exact_match` is None where no answers were generated."""

    name: str
    against: str
    loss: Gap
    exact_match: Gap | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """`rows`: base, adapters, stacks, merges, in that order."""

    rows: tuple[Measured, ...]
    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...] = ()


def judge(
    model: str | Path,
    rows: RowSet,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    stacks: Stacks | None = None,
    merged: Mapping[str, str | Path] | None = None,
    answers: int = 50,
    max_length: int = 2048,
    dtype: str = "auto",
    template: str | None = None,
    on_bad: OnBad = "stop",
) -> Judged:
    """Measure a base, adapters over it, weighted stacks of them and merged models; one model is open at a time.

    adapters   name → adapter folder
    stacks     name → adapter's name → weight, summed at run time
    merged     name → model folder or hub id, whose tokens must be the base's, or the rows would not pair
    on_bad     skip: leave out rows that cannot be encoded, told among the findings

    `UsageError` for a name that is used twice, `ModelError` for a merged model that reads the rows otherwise.
    """
    adapters, stacks, merged = adapters or {}, stacks or {}, merged or {}
    names = [BASE, *adapters, *stacks, *merged]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"the name '{twice[0]}' stands for two", expected="each name once")
    loaded = load(model, adapters, dtype=dtype, template=template)
    findings = [*rows.findings, *rows.problems, *loaded.findings]
    read = partial(measure, rows=rows, answers=answers, max_length=max_length, on_bad=on_bad)
    found = list(read(loaded, stacks=stacks, tell=findings.append))
    del loaded
    for name, folder in merged.items():
        (only,) = read(load(folder, dtype=dtype, template=template))
        found.append(replace(only, name=name))
        if found[-1].ids_digest != found[0].ids_digest:
            raise ModelError(
                f"'{name}' reads the rows as other tokens than {model}",
                expected="a model merged from this base, with its tokenizer and template",
                cure=f"measure it alone: lorawise eval {folder} DATA",
            )
    parents = _parents(adapters, stacks, merged)
    by_name = {each.name: each for each in found}
    pairs = [_pair(by_name[name], by_name[other]) for name in names[1:] for other in (BASE, *parents[name])]
    return Judged(rows=tuple(found), pairs=tuple(pairs), findings=tuple(findings))


def _pair(one: Measured, other: Measured) -> Pair:
    return Pair(
        name=one.name,
        against=other.name,
        loss=loss_gap(np.array(one.row_losses), np.array(other.row_losses), np.array(one.row_tokens)),
        exact_match=match_gap(_right(one), _right(other)) if one.examples else None,
    )


def _right(one: Measured) -> NDArray[np.bool_]:
    return np.array([sample.match for sample in one.examples], dtype=np.bool_)


def _parents(
    adapters: Mapping[str, str | Path], stacks: Stacks, merged: Mapping[str, str | Path]
) -> dict[str, tuple[str, ...]]:
    """Name → the measured adapters it was made of; a plain adapter has none."""
    digests: dict[str, str] = {}
    told: dict[str, Sequence[str]] = {}
    for name, folder in adapters.items():
        adapter = read_adapter(Path(folder).expanduser())
        history = read_history(Path(folder).expanduser(), adapter)
        digests[stored_digest(adapter)] = name
        told[name] = () if history is None else history.parents
    found = {name: _known(parents, digests, leaving=name) for name, parents in told.items()}
    found |= {name: tuple(member for member, weight in stack.items() if weight) for name, stack in stacks.items()}
    for name, folder in merged.items():
        found[name] = _known(list(_merged_from(Path(folder).expanduser())), digests) or tuple(adapters)
    return found


def _known(parents: Sequence[str], digests: Mapping[str, str], *, leaving: str = "") -> tuple[str, ...]:
    return tuple(digests[digest] for digest in parents if digest in digests and digests[digest] != leaving)


def _merged_from(folder: Path) -> Iterator[str]:
    """Digests of the adapters that a merge's record names; none where there is no record of ours."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    listed = record.get("adapters") if isinstance(record, dict) else None
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
            yield entry["digest"]
