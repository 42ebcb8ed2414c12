"""The local store: adapters by what they hold, and names that say which.

    objects/<digest>/   PEFT's two files, the history and the card, with the sha256 of each
    names.json          name → digest

The digest is that of the tensors and of what matters in the setting (`stored_digest`), so the same adapter is kept once
whatever it was called. A name never changes its bytes silently: to point it elsewhere is said with `move`. What is
handed out was verified: the files against their sha256, the tensors against the digest.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lorawise.base.errors import AdapterError, StorageError, nearest
from lorawise.base.files import atomic_folder, storage_errors, verify_folder, write_text
from lorawise.base.locks import alone_in
from lorawise.store.algebra.result import Source
from lorawise.store.own_files import own_file
from lorawise.store.peft_format import CARD, CONFIG, PROVENANCE, TENSORS

NAMES, OBJECTS, ENTRY = "names.json", "objects", "entry.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_ENTRY_TYPES = [  # a scaling of 2.0 is a whole number to some writers of JSON
    {"base": str, "r": int, "scaling": number, "parameters": int, "bytes": int} for number in (float, int)
]
_PATIENCE = 10  # seconds another command may hold the store


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One adapter of the store, as told when it was added."""

    digest: str
    names: tuple[str, ...]
    base: str
    r: int
    scaling: float
    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A store in a folder. `Shelf.at(None)`: $LORAWISE_STORE, or ~/.local/share/lorawise."""

    root: Path

    @classmethod
    def at(cls, folder: Path | None) -> "Shelf":
        told = os.environ.get("LORAWISE_STORE")
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        return cls(root=(folder or (Path(told) if told else data / "lorawise")).expanduser())

    def add(self, source: Source, name: str) -> Kept:
        """Keep a copy under a name. Added again it is the same; `AdapterError` when the name means another adapter."""
        _require_name(name)
        with self._locked():
            names = self._names()
            if names.get(name, source.digest) != source.digest:
                raise AdapterError(
                    f"the name '{name}' means {names[name][:12]}…, this adapter is {source.digest[:12]}…",
                    expected="a name that is free, or that means this adapter",
                    cure=f"choose another name, or move it: lorawise adapter tag {source.digest[:12]} {name} --move",
                )
            if not self._object(source.digest).is_dir():
                self._copy(source)
            self._write(names | {name: source.digest})
            return self._kept(source.digest, {**names, name: source.digest})

    def tag(self, found: str, name: str, *, move: bool = False) -> Kept:
        """Another name for an adapter of the store; with `move` a name that means another one is moved here."""
        _require_name(name)
        with self._locked():
            names = self._names()
            digest = self._digest(found, names)
            if names.get(name, digest) != digest and not move:
                raise AdapterError(
                    f"the name '{name}' means {names[name][:12]}…, not {digest[:12]}…",
                    expected="a name that is free",
                    cure="add --move to make it mean this adapter from now on",
                )
            self._write(names | {name: digest})
            return self._kept(digest, {**names, name: digest})

    def remove(self, name: str) -> tuple[str, bool]:
        """Forget a name; the adapter goes with its last one. (digest, whether the adapter went)."""
        with self._locked():
            names = self._names()
            if name not in names:
                raise self._unknown(name, names)
            digest = names.pop(name)
            self._write(names)
            last = digest not in names.values()
            if last:
                _forget(self._object(digest))
            return digest, last

    def list(self) -> list[Kept]:
        """What is kept, by name. Only names and entries are read, so ten thousand adapters list in a second or two."""
        called: dict[str, list[str]] = {}
        for name, digest in self._names().items():
            called.setdefault(digest, []).append(name)
        return [self._entry(digest, names) for digest, names in called.items()]

    def find(self, found: str) -> Path:
        """The verified folder of an adapter, by name or by the first 8 or more characters of its digest."""
        digest = self._digest(found, self._names())
        folder = self._object(digest)
        problems = verify_folder(folder) if folder.is_dir() else [f"{folder} is missing"]
        if not problems and (told := Source.open(folder).digest) != digest:
            problems = [f"its tensors have the digest {told[:12]}…"]
        if problems:
            raise AdapterError(
                f"'{found}' in the store is not what was added: {'; '.join(problems)}",
                expected=f"the adapter {digest[:12]}… as it was added",
                cure=f"lorawise adapter rm {found}, and add it again from where it came",
            )
        return folder

    def _copy(self, source: Source) -> None:
        """PEFT's files and ours, by their known names: whatever else is in the folder stays there."""
        adapter, kept = source.adapter, [CONFIG, TENSORS, PROVENANCE, CARD]
        tensors = [t for pair in adapter.layers.values() for t in pair] + list(adapter.full.values())
        entry = {
            "base": source.base,
            "r": adapter.config.r,
            "scaling": adapter.config.scaling,
            "parameters": sum(tensor.size for tensor in tensors),
            "bytes": sum(tensor.nbytes for tensor in tensors),
        }
        with atomic_folder(self._object(source.digest), manifest=True) as scratch:
            for name in kept:
                if (path := own_file(source.folder, name)) is not None:
                    shutil.copyfile(path, scratch / name)
            (scratch / ENTRY).write_text(json.dumps(entry), encoding="utf-8")
            if (copied := Source.open(scratch).digest) != source.digest:
                raise AdapterError(f"{source.folder} changed while it was copied: {copied[:12]}…", cure="add it again")

    def _object(self, digest: str) -> Path:
        return self.root / OBJECTS / digest

    def _names(self) -> dict[str, str]:
        path = self.root / NAMES
        if not path.exists():
            return {}
        try:
            names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            names = None
        if not isinstance(names, dict) or not all(
            _NAME.fullmatch(name) and isinstance(d, str) and _DIGEST.fullmatch(d) for name, d in names.items()
        ):
            raise StorageError(f"{path} is torn", expected="names and digests", cure="restore it from a copy")
        return names

    def _write(self, names: dict[str, str]) -> None:
        write_text(self.root / NAMES, json.dumps(dict(sorted(names.items())), indent=1) + "\n")

    def _kept(self, digest: str, names: dict[str, str]) -> Kept:
        return self._entry(digest, sorted(name for name, d in names.items() if d == digest))

    def _entry(self, digest: str, names: Sequence[str]) -> Kept:
        path = self._object(digest) / ENTRY
        try:
            entry = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or {n: type(v) for n, v in entry.items()} not in _ENTRY_TYPES:
            raise StorageError(
                f"{path} is torn",
                expected="what was told of the adapter",
                cure="lorawise adapter rm NAME, and add it again",
            )
        return Kept(digest=digest, names=tuple(names), **entry)

    def _digest(self, found: str, names: dict[str, str]) -> str:
        if found in names:
            return names[found]
        matching = {d for d in names.values() if _PREFIX.fullmatch(found) and d.startswith(found)}
        if len(matching) != 1:
            raise self._unknown(found, names)
        return matching.pop()

    def _unknown(self, name: str, names: dict[str, str]) -> AdapterError:
        cure = nearest(name, list(names)) if 0 < len(names) <= 1000 else "lorawise adapter list"
        return AdapterError(f"the store at {self.root} knows no '{name}'", expected="a name or a digest", cure=cure)

    def _locked(self) -> AbstractContextManager[None]:
        refusal = StorageError(f"another command holds {self.root}", cure="wait for it, and try again")
        return alone_in(self.root, busy=lambda: refusal, patience=_PATIENCE)


def _forget(folder: Path) -> None:
    """Remove a kept adapter; of a link the link alone."""
    with storage_errors(folder):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name) or _PREFIX.fullmatch(name):
        raise AdapterError(
            f"'{name}' cannot be a name",
            expected="letters, digits, dot, dash and underscore, at most 64, and not a digest",
            cure="choose another name",
        )
