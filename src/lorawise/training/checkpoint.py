"""Checkpoints: everything to go on to the bit, whole or not there.

    checkpoints/step-000200/
        parameter.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors    masters and moments by parameter name
        progress.json       counters, best so far, evaluations        optimizer.json   step counts, loss scales
        identity.json       of the run file, the data and the base    manifest.json    sha256 of each, last

There is no random state to keep: data order and dropout are functions of (seed, step), and the global generator is
never used. A checkpoint that does not match its manifest is passed over for the next older one.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from lorawise.base.errors import StorageError
from lorawise.base.files import atomic_folder, sweep_partial, verify_folder
from lorawise.base.findings import Finding
from lorawise.training.optimizer import BankAdamW
from lorawise.training.state import Progress

TENSORS = ("parameter", "exp_avg", "exp_avg_sq")
FILES = (*(f"{word}.safetensors" for word in TENSORS), "progress.json", "optimizer.json", "identity.json")
_FOLDER = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One that verified. `identity` says of which run file, data and base it is."""

    folder: Path
    progress: Progress
    identity: Mapping[str, str]


def save_checkpoint(
    parent: Path, progress: Progress, optimizer: BankAdamW, identity: Mapping[str, str], *, keep: int
) -> Path:
    """Write `step-…` under `parent`, and only then remove all but the newest `keep` up to this step."""
    target = parent / _name(progress.step)
    tensors = optimizer.tensors()
    with atomic_folder(target, manifest=True) as scratch:
        for word in TENSORS:
            chosen = {
                name.removeprefix(f"{word}."): tensor.contiguous()
                for name, tensor in tensors.items()
                if name.startswith(f"{word}.")
            }
            (scratch / f"{word}.safetensors").write_bytes(save(chosen))
        for name, text in (
            ("progress.json", progress.to_json()),
            ("optimizer.json", json.dumps(optimizer.counters())),
            ("identity.json", json.dumps(dict(identity), indent=1)),
        ):
            (scratch / name).write_text(text, encoding="utf-8")
    _prune(parent, progress.step, keep)
    return target


def newest_checkpoint(parent: Path) -> tuple[Checkpoint | None, list[Finding]]:
    """The newest whole checkpoint, and a finding for every newer one that is damaged. Clears what a kill left."""
    if not parent.is_dir():
        return None, []
    sweep_partial(parent)
    findings: list[Finding] = []
    for _, folder in sorted(_steps(parent), reverse=True):
        problems = [f"{folder.name}/{name} is missing" for name in FILES if not (folder / name).is_file()]
        problems = problems or verify_folder(folder)
        try:
            if not problems:
                return _opened(folder), findings
        except StorageError as problem:
            problems = [problem.found]
        findings.append(
            Finding(
                code="torn-checkpoint",
                level="warning",
                message=f"checkpoint passed over: {'; '.join(problems)}",
                cure="going on from the newest whole one before it",
                path=str(folder),
            )
        )
    return None, findings


def restore(checkpoint: Checkpoint, optimizer: BankAdamW) -> None:
    """Parameters, moments and counters of the checkpoint into an optimizer of the same run."""
    saved: dict[str, Tensor] = {}
    for word in TENSORS:
        tensors = load_file(checkpoint.folder / f"{word}.safetensors")
        saved |= {f"{word}.{name}": tensor for name, tensor in tensors.items()}
    optimizer.load_tensors(saved)
    try:
        optimizer.load_counters(_json(checkpoint.folder / "optimizer.json"))
    except (KeyError, TypeError, ValueError) as problem:
        raise _foreign(checkpoint.folder / "optimizer.json", problem) from problem


def _opened(folder: Path) -> Checkpoint:
    try:
        progress = Progress.from_json(_json(folder / "progress.json"))
    except (KeyError, TypeError, ValueError) as problem:
        raise _foreign(folder / "progress.json", problem) from problem
    if folder.name != _name(progress.step):
        raise StorageError(f"{folder}/progress.json is of step {progress.step}", cure=_CURE)
    return Checkpoint(folder=folder, progress=progress, identity=_json(folder / "identity.json"))


_CURE = "remove that checkpoint and resume"


def _foreign(path: Path, problem: Exception) -> StorageError:
    return StorageError(f"{path} is not as this version writes it ({type(problem).__name__}: {problem})", cure=_CURE)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StorageError(f"{path} cannot be read: {problem}", cure=_CURE) from problem
    if not isinstance(value, dict):
        raise StorageError(f"{path} holds no object", cure=_CURE)
    return value


def _steps(parent: Path) -> list[tuple[int, Path]]:
    names = ((_FOLDER.fullmatch(path.name), path) for path in parent.iterdir())
    return [(int(match[1]), path) for match, path in names if match]


def _prune(parent: Path, step: int, keep: int) -> None:
    older = sorted(entry for entry in _steps(parent) if entry[0] <= step)
    for _, folder in older[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
