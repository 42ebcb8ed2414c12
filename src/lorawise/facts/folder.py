"""A model's folder: config.json, and the headers of its safetensors. Weights are never read here.

Only safetensors are opened, never pickles: those can run code.
"""

import json
import os
from pathlib import Path
from typing import Any

from lorawise.base.errors import ModelError
from lorawise.base.safetensors import SafetensorsFile, TensorHeader

_WANTED = 'the config.json that transformers writes: a mapping with "model_type": "llama" or another'
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", expected="a base model's folder", cure=_no_config_cure(folder)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path} is not JSON: {problem}", cure="fetch the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {_kind(config)}", expected=_WANTED, cure="fetch the model again")
    if not isinstance(config.get("model_type"), str):
        said = repr(config["model_type"]) if "model_type" in config else "none"
        raise ModelError(
            f"{path} names no model_type ({said})",
            expected=_WANTED,
            cure="fetch the model again, or save it with save_pretrained",
        )
    return config


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "nothing")


def has_weights(folder: Path) -> bool:
    """Whether safetensors are there, or are promised by an index."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, in the order of their names; `ModelError` with the list of what is missing."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not index.is_file():
        raise ModelError(
            f"{folder} holds no model.safetensors",
            expected="safetensors: pickled weights (.bin, .pt) can run code when opened, so they are refused",
            cure="take a repository that has safetensors, or save the model again with save_pretrained",
        )
    shards = sorted(set(weight_map(index).values()))
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
    files = weight_files(folder)
    for path in files:
        found |= SafetensorsFile.open(path).tensors
    if not found:
        raise ModelError(
            f"{files[0]} holds no tensor", expected="the tensors of a base model", cure="fetch the model again"
        )
    return found


def weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(f"{index} holds no weight_map", cure="fetch the model again")
    return found


def looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", os.sep)) or text.count("/") > 1 or text.lower().endswith(".gguf")


def file_cure(path: Path) -> str:
    if path.suffix in (".safetensors", ".json"):
        return f"name the folder: {path.parent}"
    if path.suffix in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"):
        return "this looks like data: name the model first, then the data"
    return "pickled weights can run code when opened: take safetensors" if path.suffix in (".bin", ".pt") else ""


def _no_config_cure(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter: name its base model here, and the adapter as an adapter"
    return "name the folder that holds config.json"
