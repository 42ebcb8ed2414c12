"""Adapters on disk, in PEFT's format, whole or not there.

    adapter_config.json          the setting (fields in `peft_config`)
    adapter_model.safetensors    the tensors (keys in `peft_keys`)
    provenance.json, README.md   ours: where it came from, and the model card

A folder read is input from strangers: the config first, then the names, shapes and types in the header, and only then
the tensors; the first thing that does not hold is an `AdapterError` with its cure.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.base.files import atomic_folder
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import AdapterWeights
from lorawise.store.card import model_card
from lorawise.store.peft_config import check_fields, from_peft, listing, saved_module, task_of, to_peft
from lorawise.store.peft_keys import DAMAGED, TensorFile, check_shapes, kinds_of, read_header, sort_keys, to_keys
from lorawise.store.provenance import Provenance, record_of, setting_of, verified

CONFIG, TENSORS, PROVENANCE, CARD = "adapter_config.json", "adapter_model.safetensors", "provenance.json", "README.md"
MAX_JSON = 16 * 2**20  # bytes; the config of an adapter on ten thousand modules, all named in full, has 1 MB


def save_adapter(
    folder: Path,
    weights: AdapterWeights,
    *,
    base: str,
    provenance: Provenance | None = None,
    modules: Iterable[str] = (),
) -> None:
    """Write the adapter to `folder`, whole or not at all; tensors keep their dtype.

    modules  names of every module of the base model: the targets are then written as short suffixes (`q_proj`)
    `AdapterError` when the weights do not fit their own setting, `StorageError` when the disk refuses.
    """
    tensors = to_keys(weights)
    history = replace(provenance or Provenance(), base=base)
    texts = {
        CONFIG: _dump(to_peft(weights, base=base, modules=modules)),
        PROVENANCE: _dump(record_of(weights, history)),
        CARD: model_card(weights, history, base=base),
    }
    with atomic_folder(folder) as scratch:
        (scratch / TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")


def load_adapter(folder: Path) -> AdapterWeights:
    """The adapter in `folder`, ours or PEFT's, as it is on disk (dtype included). `AdapterError` with cure."""
    try:
        fields = _read_fields(folder)
        check_fields(fields)
        with safe_open(str(_tensor_file(folder)), framework="pt", device="cpu") as file:
            header = read_header(file)
            keys = sort_keys(header, fields)
            config = from_peft({**fields, "modules_to_save": keys.saved}, list(keys.layers))
            check_shapes(keys, header, config)
            weights = AdapterWeights(
                config=config,
                layers={name: (_tensor(file, a), _tensor(file, b)) for name, (a, b) in keys.layers.items()},
                full={name: _tensor(file, key) for name, key in keys.full.items()},
                kinds=kinds_of(keys, fields),
                task=task_of(fields),
            )
    except SafetensorError as problem:
        raise AdapterError(
            f"{folder / TENSORS} cannot be read: {problem}", expected="a whole safetensors file", cure=DAMAGED
        ) from None
    except OSError as problem:
        raise AdapterError(
            f"{folder} cannot be read: {problem.strerror or problem}", cure="check the path and its permissions"
        ) from None
    _check_finite(weights)
    return replace(weights, config=_as_asked(folder, weights))


def read_provenance(folder: Path, weights: AdapterWeights) -> Provenance | None:
    """The history of the adapter just loaded from `folder`; None when it has none (PEFT wrote it).

    `AdapterError` when the history is torn or tells of other tensors.
    """
    record = _read_record(folder)
    return None if record is None else verified(record, weights)


def _read_fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        inner = folder / "adapter"
        cure = f"pass {inner if (inner / CONFIG).is_file() else 'the folder that holds adapter_config.json'}"
        raise AdapterError(f"{folder} holds no adapter: {CONFIG} is missing", expected="an adapter folder", cure=cure)
    fields = _read_json(path)
    if not isinstance(fields, dict):
        raise AdapterError(f"{path} is not a JSON object", expected="PEFT's fields by name", cure=DAMAGED)
    return fields


def _read_json(path: Path) -> object:
    if path.stat().st_size > MAX_JSON:
        raise AdapterError(f"{path} has {path.stat().st_size:,} bytes", expected=f"at most {MAX_JSON:,}", cure=DAMAGED)
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise AdapterError(f"{path} is not JSON: {problem}", expected="a JSON document", cure=DAMAGED) from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {next(name for name in names if names.count(name) > 1)!r} twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which JSON has not")


def _tensor_file(folder: Path) -> Path:
    path = folder / TENSORS
    if path.is_file():
        return path
    if (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder} holds adapter_model.bin, a pickle, which may run code when it is read",
            expected=TENSORS,
            cure="where you trust it, load it in PEFT and save_pretrained() it: that writes safetensors",
        )
    raise AdapterError(f"{path} is missing", expected="the adapter's tensors", cure=DAMAGED)


def _tensor(file: TensorFile, key: str) -> torch.Tensor:
    """A copy: what safetensors hands out may be the mapped file."""
    return file.get_tensor(key).clone()


def _check_finite(weights: AdapterWeights) -> None:
    tensors = {f"{m}.lora_{h}": t for m, pair in weights.layers.items() for h, t in zip("AB", pair, strict=True)}
    broken = [name for name, tensor in (tensors | dict(weights.full)).items() if not tensor.isfinite().all()]
    if broken:
        raise AdapterError(
            f"{TENSORS}: NaN or infinity in {listing(broken)}",
            expected="finite numbers",
            cure="the training diverged: use an earlier checkpoint, and a lower learning rate",
        )


def _as_asked(folder: Path, weights: AdapterWeights) -> LoraConfig:
    """The setting as it was asked for, where our record holds it and means the same as PEFT's fields; else theirs."""
    record = _read_record(folder)
    if record is None:
        return weights.config
    told, found = setting_of(record), weights.config
    try:
        same = (told.bias, told.dropout, told.rslora) == (found.bias, found.dropout, found.rslora)
        same = same and all(
            told.rank_of(m) == found.rank_of(m) and _close(told.scaling_of(m), found.scaling_of(m))
            for m in weights.layers
        )
    except ConfigError as problem:
        raise AdapterError(f"{folder / PROVENANCE}: {problem.found}", cure=problem.cure or DAMAGED) from None
    same = same and all((saved_module(told, n) is None) == (saved_module(found, n) is None) for n in weights.full)
    return told if same else found


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * abs(b)


def _read_record(folder: Path) -> object | None:
    path = folder / PROVENANCE
    return _read_json(path) if path.is_file() else None


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
