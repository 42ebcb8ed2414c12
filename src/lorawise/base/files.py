"""Files that are whole or not there.

A folder is written beside its target, each file synced, a manifest of sha256 written last, then renamed:
a reader sees the old folder or the new one, never a mixture (EVIDENCE 7).
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorawise.base.errors import StorageError

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # how the name of what is being written ends


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_text(*parts: str) -> str:
    """One sha256 of several texts, length-prefixed so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one rename."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(target: Path, *, manifest: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends well, and vanishes when it does not.

    An existing `target` is renamed aside first and removed after; a process killed between the two renames leaves it
    aside, where `sweep_partial` finds it. With `manifest`, the sha256 of every
    file is written last as `manifest.json`, which `verify_folder` reads back.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
        try:
            yield scratch
            if manifest:
                digests = {name: sha256_file(scratch / name) for name in _files(scratch)}
                (scratch / MANIFEST).write_text(json.dumps(digests, indent=1, sort_keys=True), encoding="utf-8")
            for name in _files(scratch):
                _sync(scratch / name)
            _sync(scratch)
            scratch.chmod(0o755)
            _replace_folder(scratch, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def verify_folder(folder: Path) -> list[str]:
    """What is wrong with a folder written with a manifest; empty when every byte is as written."""
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{folder.name}/{MANIFEST} is missing: the save did not finish"]
    except (json.JSONDecodeError, UnicodeDecodeError):
        return [f"{folder.name}/{MANIFEST} is torn"]
    if not isinstance(digests, dict):
        return [f"{folder.name}/{MANIFEST} is torn"]
    problems = []
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{folder.name}/{name} is missing")
        elif sha256_file(path) != digest:
            problems.append(f"{folder.name}/{name} does not match its sha256")
    strange = [name for name in _files(folder) if not _vouched(name, digests)]
    return problems + [f"{folder.name}/{name} is not in the manifest" for name in strange]


def _vouched(name: str, digests: Mapping[str, object]) -> bool:
    """What a desktop or a network drive left beside the files (`.DS_Store`, `.nfs…`) needs no digest."""
    return name in digests or name == MANIFEST or Path(name).name.startswith(".")


def sweep_partial(parent: Path) -> None:
    """Clean what a killed process left in `parent`: what it had not finished goes, a folder moved aside comes back."""
    for left in parent.glob(f".*{PARTIAL}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    for aside in parent.glob(".*.previous"):
        target = parent / aside.name.removeprefix(".").removesuffix(".previous")
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, target)


def refuse_full_disk(target: Path, needed: int) -> None:
    """`StorageError` before the first byte where the disk has fewer than `needed` free."""
    place = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"{target} needs {needed / 1e9:,.2f} GB, its disk has {free / 1e9:,.2f} GB free",
            cure="free space, or choose another folder with -o",
        )


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into errors that say what to do."""
    try:
        yield
    except OSError as problem:
        match problem.errno:
            case errno.ENOSPC | errno.EDQUOT:
                found, cure = f"no space left while writing {path}", "free space, or choose another folder with -o"
            case errno.EROFS | errno.EACCES | errno.EPERM:
                found, cure = f"may not write {path}: {problem.strerror}", "choose a writable folder with -o"
            case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.EEXIST | errno.ENAMETOOLONG | errno.ELOOP:
                found, cure = f"cannot write {path}: {problem.strerror}", "choose another folder with -o"
            case errno.EIO:
                found, cure = f"the disk failed while writing {path}: {problem.strerror}", "look at the disk"
            case _:
                raise
        raise StorageError(found, cure=cure) from problem


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(scratch: Path, target: Path) -> None:
    aside = target.parent / f".{target.name}.previous"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.rename(target, aside)
    os.rename(scratch, target)
    shutil.rmtree(aside, ignore_errors=True)
