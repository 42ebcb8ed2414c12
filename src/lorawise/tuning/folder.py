"""The folder of one study (its files: `events`), and whether what is asked now is what it was started with.

State is kept at the end of a rung: `state/` is replaced whole, so a study killed anywhere goes on from its last rung
with exactly the tensors, step counts and bank order it had there, and ends in the same table.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from lorawise.base.errors import StorageError, UsageError
from lorawise.base.files import atomic_folder, storage_errors, sweep_partial, verify_folder, write_text
from lorawise.base.locks import LOCK_NAME, alone_in
from lorawise.tuning.events import Event, RungEnded, StudyEnded, StudyResumed, from_line, to_line
from lorawise.tuning.pack import SlotState


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    path: Path

    @property
    def asked(self) -> Path:
        return self.path / "study.json"

    @property
    def log(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state"

    def require_usable(self, *, resume: bool) -> None:
        """Refuse what is not a study, and a study that was not asked to go on, before any work."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file", expected="a folder for the study", cure="choose another with -o")
        if not self.path.is_dir() or not any(entry.name != LOCK_NAME for entry in self.path.iterdir()):
            return
        if not self.asked.is_file():
            raise UsageError(f"{self.path} holds something that is not a study", cure="choose a new folder with -o")
        if not resume:
            raise UsageError(
                f"{self.path} holds a study already", cure="go on with --resume, or choose another folder with -o"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Alone in the folder; `UsageError` while another process works there."""
        refusal = UsageError(f"{self.path} is held by another process", cure="wait for it")
        with alone_in(self.path, busy=lambda: refusal):
            sweep_partial(self.path)
            yield

    def begun_with(self) -> dict[str, Any]:
        """What was asked when the study began; empty where it did not."""
        return _json(self.asked) if self.asked.is_file() else {}

    def require_same(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the study was started with, if `asked` is the same; `UsageError` names what changed."""
        held = _json(self.asked)
        changed = [key for key, value in asked.items() if held.get(key) != value]
        if changed:
            raise UsageError(
                f"{self.path} is of another study: {', '.join(changed)} changed since",
                expected="the run file, data, base and options that it was started with",
                cure="put them back as they were, or start anew in another folder with -o",
            )
        return held

    def save(self, rung: int, states: Mapping[int, SlotState]) -> None:
        """Replace `state/` by what the rung after `rung` starts from."""
        with atomic_folder(self.state, manifest=True) as scratch:
            for trial, each in states.items():
                save_file(dict(each.tensors), scratch / f"{trial}.safetensors")
            counters = {str(trial): dict(each.counters) for trial, each in states.items()}
            write_text(scratch / "state.json", json.dumps({"rung": rung, "counters": counters}))

    def restored(self) -> tuple[int, dict[int, SlotState]]:
        """(last rung done, states); (0, {}) before the first one. `StorageError` for a damaged state."""
        if not self.state.is_dir():
            return 0, {}
        if problems := verify_folder(self.state):
            raise StorageError("; ".join(problems), cure="start anew in another folder with -o")
        saved = _json(self.state / "state.json")
        states = {
            int(trial): SlotState(tensors=load_file(self.state / f"{trial}.safetensors"), counters=counters)
            for trial, counters in saved["counters"].items()
        }
        return int(saved["rung"]), states

    def events(self) -> list[Event]:
        """The whole lines of events.jsonl; a torn last one is left out."""
        if not self.log.is_file():
            return []
        found: list[Event] = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                found.append(from_line(line))
            except (ValueError, KeyError, TypeError):
                break
        return found


def up_to_rung(events: list[Event], rung: int) -> list[Event]:
    """The events of the first `rung` rungs. Events of an unfinished rung are left out.

    `StorageError` when the lines end before that rung does: its state was saved after they were written, so they are
    damaged, and what was measured is not known any more.
    """
    if any(isinstance(event, StudyEnded) for event in events):
        return events
    ends = [i for i, event in enumerate(events) if isinstance(event, RungEnded) and event.rung == rung]
    if ends:
        return events[: ends[-1] + 1]
    if rung:
        raise StorageError(
            f"events.jsonl is readable up to line {len(events)}, before the end of rung {rung}, whose state is kept",
            expected="every line as the study wrote it",
            cure="put the file back as it was, or start anew in another folder with -o",
        )
    return []


class EventsFile:
    """A reader that appends to events.jsonl, each line on disk as soon as it is told."""

    def __init__(self, path: Path, kept: list[Event]) -> None:
        self.path = path
        write_text(path, "".join(f"{to_line(event)}\n" for event in kept))
        with storage_errors(path):
            self._out = path.open("a", encoding="utf-8")

    def __call__(self, event: Event | StudyResumed) -> None:
        if isinstance(event, StudyResumed):
            return
        with storage_errors(self.path):
            self._out.write(to_line(event) + "\n")
            self._out.flush()

    def close(self) -> None:
        self._out.close()


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StorageError(f"{path} cannot be read: {problem}", cure="choose another folder with -o") from problem
    return value
