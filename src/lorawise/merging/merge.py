"""Adapters merged into a base model on disk, shard by shard: `lorawise.merge`.

    merged = lorawise.merge("base", "runs/first/adapter", "merged")
    print(merged.retention, merged.error)

W' = round(W + Σ weight · s · B·A) in float32 arithmetic, rounded once. Tensors stream from shard to shard in blocks: a
model of any size merges in the memory of one adapter and a few blocks, without torch. Everything that can be wrong with
the call is said before a byte is written; the folder appears in one rename, so an interrupted merge leaves none.
Source of the arithmetic: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from lorawise.base.errors import AdapterError, UsageError, nearest
from lorawise.base.files import atomic_folder, refuse_full_disk
from lorawise.base.findings import Finding
from lorawise.base.peak import peak_memory
from lorawise.merging.arithmetic import Loss
from lorawise.merging.base import Base
from lorawise.merging.changes import Parent, changes_of
from lorawise.merging.companions import RECORD
from lorawise.merging.writing import Into, MergedLayer, Progress, Writing
from lorawise.models.files import resolve_model
from lorawise.runfile.schema import QUANTISED
from lorawise.store.peft_format import read_adapter, read_history
from lorawise.store.provenance import stored_digest

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
INTO: dict[str, Into] = {name: name for name in get_args(Into)}
LOSSY = 0.05  # an error above it is worth a warning and a wider dtype
Adapters = str | Path | Sequence[str | Path] | Mapping[str | Path, float]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge left and lost. `peak_memory` is the process's largest resident size so far, in bytes."""

    path: Path
    layers: tuple[MergedLayer, ...]
    dtype: str
    into: Into
    untied: bool
    seconds: float
    peak_memory: int
    findings: tuple[Finding, ...] = ()

    @property
    def loss(self) -> Loss:
        return sum((layer.loss for layer in self.layers), Loss())

    @property
    def retention(self) -> float:
        """⟨ΔW_got, ΔW⟩ / ‖ΔW‖² over all adapted weights together."""
        return self.loss.retention

    @property
    def error(self) -> float:
        """‖ΔW_got − ΔW‖ / ‖ΔW‖ over all adapted weights together."""
        return self.loss.error


def merge(
    model: str | Path,
    adapters: Adapters,
    out: str | Path,
    *,
    dtype: str = "keep",
    into: str = "stored",
    any_base: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Write `model` with `adapters` merged into it to the new folder `out`.

    model      hub id, folder or .gguf file
    adapters   folder, several folders, or folder → weight; several are merged as their weighted sum, rounded once
    dtype      keep, or bfloat16, float16 or float32 for every floating tensor of the result
    into       stored: the weights as they are on disk. nf4, nf4-double: what NF4 makes of them, which is what the
               adapter of such a run saw (`choose` measures which is nearer to the model as it was trained)
    any_base   merge although the adapter's provenance names other weights

    `ModelError`, `AdapterError`, `UsageError` before anything is written; `StorageError` when the disk refuses.
    """
    started = time.perf_counter()
    _check(dtype, DTYPES, "dtype", "keep")
    _check(into, INTO, "into")
    target = Path(out).expanduser()
    parents = read_parents(adapters)
    base = Base.open(resolve_model(model))
    _refuse_target(target, base)
    findings = [*check_bases(base, parents, any_base=any_base), *_of_another_form(parents, INTO[into])]
    changes = changes_of(base, parents)
    if updates_nothing(parents):
        findings.append(
            Finding(code="no-change", level="warning", message="every update is zero: the merge is the base")
        )
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        writing = Writing(base=base, changes=changes, dtype=DTYPES.get(dtype), into=INTO[into], pool=pool)
        refuse_full_disk(target, writing.nbytes)
        with atomic_folder(target) as scratch:
            layers = writing.write(scratch, progress or (lambda done, wanted: None))
            record = _record(base, parents, layers, INTO[into])
            (scratch / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Merged(
        path=target,
        layers=tuple(layers),
        dtype=dtype,
        into=INTO[into],
        untied=changes.untied,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        findings=(*findings, *_lossy(layers, dtype)),
    )


def read_parents(adapters: Adapters) -> list[Parent]:
    """The adapters of a merge; `AdapterError` for what cannot be read, `UsageError` when none is named."""
    if isinstance(adapters, (str, Path)):
        adapters = [adapters]
    weights = dict(adapters) if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
    if not weights:
        raise UsageError("no adapter is named", expected="one or more adapter folders")
    broken = [f"{folder}={weight}" for folder, weight in weights.items() if not np.isfinite(weight)]
    if broken:
        raise UsageError(f"{', '.join(broken)}: not a finite weight", expected="a number such as 0.7 or -1")
    folders = {Path(folder).expanduser(): float(weight) for folder, weight in weights.items()}
    return [Parent(folder=f, adapter=read_adapter(f), weight=weight) for f, weight in folders.items()]


def check_bases(base: Base, parents: Sequence[Parent], *, any_base: bool) -> list[Finding]:
    """Refuse adapters whose provenance names other weights; with `any_base` say so instead."""
    findings = []
    for parent in parents:
        history = read_history(parent.folder, parent.adapter)
        if history is None or not history.base_digest or history.base_digest == base.files.digest:
            continue
        found = f"{parent.folder} was trained over other weights: {history.base} ({history.base_digest[:12]}…)"
        if not any_base:
            raise AdapterError(
                found,
                expected=f"an adapter of {base.files.source} ({base.files.digest[:12]}…)",
                cure=f"merge it into {history.base}, or say --any-base if these weights are meant",
            )
        findings.append(Finding(code="other-base", level="warning", message=found, path=str(parent.folder)))
    return findings


def _of_another_form(parents: Sequence[Parent], into: Into) -> list[Finding]:
    """Adapters trained over a base in few bits, merged into weights they did not see."""
    found = []
    for parent in parents:
        history = read_history(parent.folder, parent.adapter)
        form = history.base_held.get("dtype") if history is not None else None
        if form in QUANTISED and into == "stored":
            cure = "--choose merges into both and keeps what is nearer" if form == "nf4" else "compare it: --verify"
            told = f"{parent.folder} was trained over the base in {form}, and is merged into the stored weights"
            found.append(Finding(code="other-form", level="note", message=told, cure=cure, path=str(parent.folder)))
    return found


def updates_nothing(parents: Sequence[Parent]) -> bool:
    """Whether every update is exactly zero: weights of 0, or B as it was before training."""
    return not any(
        parent.adapter.full or any(b.bits().any() for _, b in parent.adapter.layers.values())
        for parent in parents
        if parent.weight
    )


def _check(value: str, known: Mapping[str, object], noun: str, *more: str) -> None:
    if value not in known and value not in more:
        raise UsageError(f"{noun} '{value}' is not known", cure=nearest(value, [*more, *known]))


def _refuse_target(target: Path, base: Base) -> None:
    if target.resolve() == base.files.folder.resolve():
        raise UsageError(f"{target} is the base model itself", cure="choose another folder with -o")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists already", expected="a new folder", cure="choose another one with -o")


def _lossy(layers: Sequence[MergedLayer], dtype: str) -> list[Finding]:
    loss = sum((layer.loss for layer in layers), Loss())
    if loss.error <= LOSSY or dtype == "float32":
        return []
    message = f"rounding changed the update by {loss.error:.1%}; {loss.retention:.1%} of it is kept"
    return [Finding(code="rounded-away", level="warning", message=message, cure="--dtype float32 keeps all of it")]


def _record(base: Base, parents: Sequence[Parent], layers: Sequence[MergedLayer], into: Into) -> dict[str, object]:
    loss = sum((layer.loss for layer in layers), Loss())
    return {
        "format": 1,
        "base": {"source": base.files.source, "digest": base.files.digest, "into": into},
        "adapters": [{"digest": stored_digest(parent.adapter), "weight": parent.weight} for parent in parents],
        "retention": loss.retention,
        "error": loss.error,
    }
