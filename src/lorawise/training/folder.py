"""The folder of one run, and whether what is asked now is what it was started with.

run.yaml   metrics.jsonl   facts.json   report.html   adapter/   checkpoints/
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorawise.base.errors import ConfigError, StorageError, UsageError
from lorawise.base.files import PARTIAL, digest_text, storage_errors, sweep_partial, write_text
from lorawise.base.locks import LOCK_NAME, alone_in
from lorawise.runfile import RunFile, load_run_file
from lorawise.runfile.write import written

MAY_CHANGE = (
    frozenset(  # none of them changes a bit of what is trained; `train.memory` is what running out of it advises
        {"train.keep_checkpoints", "train.memory", "train.save_every", "train.trackers"}
    )
)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.yaml"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def started(self) -> bool:
        return self.run_file.is_file()

    def require_usable(self, *, resume: bool) -> None:
        """Refuse a folder that holds something else, and one that cannot be written, before any work."""
        with storage_errors(self.path):
            there = self.path.exists()
        if there and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file", expected="a folder for the run", cure="choose another with -o")
        if self.path.is_dir() and any(not _left_by_a_kill(entry) for entry in self.path.iterdir()):
            if not self.started:
                raise UsageError(
                    f"{self.path} holds something that is not a run", cure="choose an empty or new folder with -o"
                )
            if not resume:
                raise UsageError(
                    f"{self.path} holds a run already", cure="go on with --resume, or choose another folder with -o"
                )
        _try_writing(self.path)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Alone in the folder: `UsageError` while another process trains there."""
        return alone_in(
            self.path,
            busy=lambda: UsageError(
                f"{self.path} is being trained by another process", cure="wait for it, or choose another with -o"
            ),
        )

    def require_there(self) -> None:
        """`StorageError` when somebody took the folder away while the run goes on: it is not made anew in its place."""
        with storage_errors(self.path):
            there = self.started
        if not there:
            raise StorageError(
                f"{self.path} is no longer this run's folder: it was deleted, moved or emptied while the run went on",
                expected="the folder left alone until the run is over",
                cure="start anew; if it was moved, go on with --resume -o where it is now",
            )

    def sweep(self) -> None:
        """Clear what a killed process left unfinished."""
        if self.path.is_dir():
            sweep_partial(self.path)

    def settled(self, asked: RunFile) -> RunFile:
        """What the run was started with, if `asked` means the same; `ConfigError` names what changed."""
        held, _ = load_run_file(self.run_file)
        changes = list(_changes(held, asked))
        if changes:
            raise ConfigError(
                f"{self.path} was started with another run file:\n  " + "\n  ".join(changes),
                expected="the same settings, for a resumed run to equal one never stopped",
                cure="put them back, or start anew in another folder with -o",
            )
        kept = {key: value for key, value in _flat(asked.model_dump()) if key in MAY_CHANGE and value != "auto"}
        return held.with_values(kept)

    def write_run_file(self, run: RunFile) -> None:
        write_text(self.run_file, run.to_yaml())


def identity_of(run: RunFile, *, data: str, base: str) -> dict[str, str]:
    """What a checkpoint belongs to, by what a person would call it."""
    settings = {key: value for key, value in _flat(run.model_dump()) if key not in MAY_CHANGE}
    return {"the run file": digest_text(repr(sorted(settings.items()))), "the data": data, "the base model": base}


def require_same(saved: Mapping[str, str], now: Mapping[str, str], path: Path) -> None:
    changed = [name for name in now if saved.get(name) != now[name]]
    if changed:
        raise ConfigError(
            f"{path} is of another run: {' and '.join(changed)} changed since",
            expected="the run file, data and base it was started with",
            cure="put them back as they were, or start anew in another folder with -o",
        )


def _changes(held: RunFile, asked: RunFile) -> Iterator[str]:
    before = dict(_flat(held.model_dump()))
    for key, value in _flat(asked.model_dump()):
        if value != before[key] and value != "auto" and key not in MAY_CHANGE:
            yield f"{key}: {_shown(held, key)} then, {_shown(asked, key)} now"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and not prefix:
            yield from _flat(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def _left_by_a_kill(entry: Path) -> bool:
    """What a run that was killed before its run.yaml was there leaves: a folder to start in all the same."""
    return entry.name == LOCK_NAME or (entry.name.startswith(".") and entry.name.endswith(PARTIAL))


def _shown(run: RunFile, dotted: str) -> str:
    """One value as the run file has it."""
    section, _, name = dotted.rpartition(".")
    return written(getattr(getattr(run, section) if section else run, name))


def _try_writing(path: Path) -> None:
    """Fail now rather than after hours; leaves nothing behind."""
    with storage_errors(path):
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(b"\0" * 4096)
        finally:
            for made in missing:
                made.rmdir()
