"""Adapters on disk, in PEFT's format, whole or not there.

    adapter_config.json          the setting (fields in `peft_config`)
    adapter_model.safetensors    the tensors (keys in `peft_keys`)
    provenance.json, README.md   ours: where it came from, and the model card

A folder read is input from strangers: the config first, then the names, shapes and types in the header, and only then
the tensors; the first thing that does not hold is an `AdapterError` with its cure.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lorawise.base.errors import AdapterError, ConfigError, TensorFileError
from lorawise.base.files import atomic_folder
from lorawise.base.safetensors import SafetensorsFile
from lorawise.base.safetensors_write import write_safetensors
from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import StoredAdapter
from lorawise.store.card import model_card
from lorawise.store.expert_layout import stacked
from lorawise.store.own_files import own_file
from lorawise.store.peft_config import check_fields, from_peft, saved_module, task_of, to_peft
from lorawise.store.peft_keys import DAMAGED, check_shapes, check_types, finite, kinds_of, pairs_of, sort_keys, to_keys
from lorawise.store.provenance import Provenance, record_of, setting_of, verified
from lorawise.store.unfused_experts import fused_form

CONFIG, TENSORS, PROVENANCE, CARD = "adapter_config.json", "adapter_model.safetensors", "provenance.json", "README.md"
PICKLE = "adapter_model.bin"  # of old PEFT; `pickled` reads it when asked
MAX_JSON = 16 * 2**20  # bytes; the config of an adapter on ten thousand modules, all named in full, has 1 MB


def write_adapter(
    folder: Path,
    weights: StoredAdapter,
    *,
    base: str,
    provenance: Provenance | None = None,
    modules: Iterable[str] = (),
) -> None:
    """Write the adapter to `folder`, whole or not at all, one tensor in memory at a time; tensors keep their dtype.

    modules  names of every module of the base model: the targets are then written as short suffixes (`q_proj`)
    `AdapterError` when the weights do not fit their own setting, `StorageError` when the disk refuses.
    """
    tensors = to_keys(weights)
    history = replace(provenance or Provenance(), base=base)
    fields = to_peft(weights, base=base, modules=modules)
    with atomic_folder(folder) as scratch:
        write_safetensors(scratch / TENSORS, tensors, metadata={"format": "pt"})
        # The digest is of what the file holds: nothing that is computed when read is computed twice for it.
        written = _named(SafetensorsFile.open(scratch / TENSORS), tensors, weights)
        texts = {
            CONFIG: _dump(fields),
            PROVENANCE: _dump(record_of(written, history)),
            CARD: model_card(written, history, base=base),
        }
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")


def read_adapter(folder: Path) -> StoredAdapter:
    """The adapter in `folder`, ours or PEFT's, as it is on disk: judged by its config and header, its tensors left
    where they are until their bits are asked for. `AdapterError` with cure, also for NaN met later."""
    try:
        fields = read_fields(folder)
        file = SafetensorsFile.open(_tensor_file(folder))
        check_types(file.tensors)
        weights = adapter_of(fields, {key: _held(file, key) for key in file})
        return replace(weights, config=_as_asked(folder, weights))
    except TensorFileError as problem:
        raise AdapterError(
            f"{folder / TENSORS} cannot be read: {problem.found}", expected="a whole safetensors file", cure=DAMAGED
        ) from None
    except OSError as problem:
        raise AdapterError(
            f"{folder} cannot be read: {problem.strerror or problem}", cure="check the path and its permissions"
        ) from None


def adapter_of(fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> StoredAdapter:
    """The adapter that PEFT's fields and tensors, by PEFT's keys, make; `AdapterError` when they make none."""
    fields, tensors = fused_form(fields, tensors)
    keys = sort_keys(tensors, fields)
    config = from_peft({**fields, "modules_to_save": keys.saved}, list(keys.layers))
    check_shapes(keys, tensors, config)
    return StoredAdapter(
        config=config,
        layers=pairs_of(keys, tensors, config, fields),
        full={name: tensors[key] for name, key in keys.full.items()},
        kinds=kinds_of(keys, fields),
        task=task_of(fields),
    )


def _held(file: SafetensorsFile, key: str) -> StoredTensor:
    diverged = "the training diverged: use an earlier checkpoint, and a lower learning rate"
    return finite(file.tensor(key), f"{file.path}: {key}", cure=diverged)


def _named(file: SafetensorsFile, keys: Iterable[str], weights: StoredAdapter) -> StoredAdapter:
    """`weights` with every tensor as `file` holds it; `keys` are the file's, in the order of `to_keys`."""
    tensors = iter([file.tensor(key) for key in keys])
    layers = {name: (next(tensors), next(tensors)) for name in weights.layers}
    for name in layers:
        if weights.kinds.get(name) == "experts":
            layers[name] = stacked(layers[name], weights.config.rank_of(name))
    return replace(weights, layers=layers, full={name: next(tensors) for name in weights.full})


def read_history(folder: Path, weights: StoredAdapter) -> Provenance | None:
    """The history of the adapter just read from `folder`; None when it has none (PEFT wrote it).

    `AdapterError` when the history is torn or tells of other tensors.
    """
    record = _read_record(folder)
    return None if record is None else verified(record, weights)


def read_fields(folder: Path) -> dict[str, Any]:
    """PEFT's fields in `folder`, checked. `AdapterError` when there are none, or none that lorawise can represent."""
    path = own_file(folder, CONFIG)
    if path is None:
        inner = folder / "adapter"
        cure = f"pass {inner if (inner / CONFIG).is_file() else 'the folder that holds adapter_config.json'}"
        raise AdapterError(f"{folder} holds no adapter: {CONFIG} is missing", expected="an adapter folder", cure=cure)
    fields = _read_json(path)
    if not isinstance(fields, dict):
        raise AdapterError(f"{path} is not a JSON object", expected="PEFT's fields by name", cure=DAMAGED)
    check_fields(fields)
    return fields


def _read_json(path: Path) -> object:
    if path.stat().st_size > MAX_JSON:
        raise AdapterError(f"{path} has {path.stat().st_size:,} bytes", expected=f"at most {MAX_JSON:,}", cure=DAMAGED)
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a character, as in "\\ud800", could not be written again
        return value
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
    path = own_file(folder, TENSORS)
    if path is not None:
        return path
    if (folder / PICKLE).exists():
        raise AdapterError(
            f"{folder} holds {PICKLE}, a pickle, which may run code when it is read",
            expected=TENSORS,
            cure=f"lorawise adapter normalize {folder} --from-pickle -o DIR reads its tensors and runs nothing; or, "
            "where you trust it, load it in PEFT and save_pretrained() it",
        )
    raise AdapterError(f"{folder / TENSORS} is missing", expected="the adapter's tensors", cure=DAMAGED)


def _as_asked(folder: Path, weights: StoredAdapter) -> LoraConfig:
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
    path = own_file(folder, PROVENANCE)
    return None if path is None else _read_json(path)


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
