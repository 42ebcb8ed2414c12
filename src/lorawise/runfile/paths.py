"""Which texts of a run file are paths, and from where they start.

A relative path in a run file starts at the folder of that file, one given in the call (`--set`, `--model`, `--data`) at
the folder the call was made in. `user/name` is a hub id unless something of that name lies there, it starts with `.`,
`~` or `/`, or it ends like a data or model file.
"""

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gguf", ".gz", ".zst", ".xz", ".bz2")

NO_PATH = (OSError, ValueError, RuntimeError)  # a name too long, a NUL in it, a loop of links, `~` of nobody


def resolve(text: str, folder: Path) -> str:
    """`text` as an absolute path when it is a path, else unchanged; what no disk can hold is left for the schema."""
    if not text.strip():
        return text
    looks_like_one = text.startswith((".", "~", "/")) or text.lower().endswith(FILE_SUFFIXES)
    with contextlib.suppress(*NO_PATH):
        path = folder / Path(text).expanduser()
        if looks_like_one or path.exists():
            return str(path.resolve())
    return text


def resolve_paths(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of a run file's plain data with `model` and the paths under `data` resolved."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    if isinstance(result.get("model"), str):
        result["model"] = resolve(result["model"], folder)
    data = result.get("data")
    if isinstance(data, dict):
        if "train" in data:
            data["train"] = _sources(data["train"], folder)
        if isinstance(data.get("validation"), str) and data["validation"] != "none":
            data["validation"] = resolve(data["validation"], folder)
        if isinstance(data.get("template"), str):
            data["template"] = resolve_template(data["template"], folder)
    return result


def resolve_template(text: str, folder: Path) -> str:
    """A chat template's file as an absolute path; a bare word such as `chatml` is the name of a known one."""
    return resolve(text if Path(text).is_absolute() else f"./{text}", folder) if "." in text or "/" in text else text


def _sources(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return resolve(value, folder)
    if isinstance(value, list):
        return [_sources(entry, folder) for entry in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return value | {"path": resolve(value["path"], folder)}
    return value
