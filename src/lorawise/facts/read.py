"""`read_model`: what is true of a base model, from what is cheapest to read. No weights, no torch.

    source                      read
    a folder                    config.json, and the headers of its safetensors where there are any
    a .gguf file                its header
    organisation/name           the hub's cache; else the bundled table of well-known models; else the hub's headers
    embedded:…                  the bundled table

A header proves the shapes (`exact`); a config alone gives them by its family's rule.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorawise.base.errors import ModelError, TensorFileError, nearest
from lorawise.base.findings import Finding
from lorawise.facts.disk import Stored, seen_on_disk
from lorawise.facts.families import family_of, unknown_family
from lorawise.facts.folder import (
    INDEX,
    file_cure,
    has_weights,
    looks_like_path,
    read_config,
    tensor_headers,
)
from lorawise.facts.generic import layout_as_stored
from lorawise.facts.gguf import read_gguf
from lorawise.facts.kinds import quantised_with, refuse_other_kinds
from lorawise.facts.known import EMBEDDED, known_config
from lorawise.facts.layout import facts_of, layout_of
from lorawise.facts.model import ModelFacts


def read_model(source: str | Path) -> ModelFacts:
    """Facts of a folder, a `.gguf` file, a hub id or the embedded model.

    `ModelError` or `TensorFileError` says what is missing, torn or unknown, where it was looked for, and the cure.
    """
    text, path = str(source), Path(source).expanduser()
    if text.startswith("embedded:"):
        if text not in EMBEDDED:
            raise ModelError(f"no embedded model '{text}'", cure=nearest(text, list(EMBEDDED)))
        return _from_table(text)
    if path.is_dir():
        return _from_folder(path, text)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is one file", expected="a folder, a .gguf file or a hub id", cure=file_cure(path))
        return read_gguf(path, text)
    if looks_like_path(text):
        raise ModelError(f"there is no model at {path}", expected="a folder, a .gguf file or a hub id")
    return _from_hub(text)


def read_model_here(source: str | Path) -> ModelFacts | None:
    """As `read_model`, from this machine alone: None for an id that only the hub could tell of."""
    text, path = str(source), Path(source).expanduser()
    if text.startswith("embedded:") or path.exists() or looks_like_path(text):
        return read_model(source)
    return _without_hub(text)


def _from_folder(folder: Path, source: str, *, whole: bool = True) -> ModelFacts:
    """`whole`: an index without its shards is an error, not a copy that was never completed."""
    where = str(folder / "config.json")
    values = read_config(folder)
    refuse_other_kinds(values, source)
    weighed = has_weights(folder) and not quantised_with(values) and (whole or _is_complete(folder))
    stored = {}
    if weighed:
        headers = tensor_headers(folder)
        stored = {name: Stored(dtype=header.dtype, shape=header.shape) for name, header in headers.items()}
    return _facts(values, stored, source=source, where=where, looked_for=f"model.safetensors or {INDEX} in {folder}")


def _without_hub(name: str) -> ModelFacts | None:
    """A hub id from the hub's cache, else from the bundled table."""
    from lorawise.facts.hub import cached_snapshot

    if snapshot := cached_snapshot(name):
        return _from_folder(snapshot, name, whole=False)
    return None if known_config(name) is None else _from_table(name)


def _from_hub(name: str) -> ModelFacts:
    from lorawise.facts.hub import hub_headers

    if (found := _without_hub(name)) is not None:
        return found
    values, stored = hub_headers(name)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ModelError(f"config.json of {name} on the hub names no model_type", cure="take a transformers model")
    refuse_other_kinds(values, name)
    plain = {} if quantised_with(values) else stored
    return _facts(values, plain, source=name, where=f"{name} on the hub", looked_for="its safetensors on the hub")


def _from_table(name: str) -> ModelFacts:
    values = known_config(name)
    assert values is not None
    note = Finding(
        code="facts-from-table",
        level="note",
        message=f"shapes of {name} are from the bundled table of well-known models",
        cure="name a folder, or fetch the model, to read them from its files",
    )
    facts = _facts(values, {}, source=name, where="the bundled table", looked_for="")
    return facts.replace(notes=(*facts.notes, note))


def _facts(
    values: Mapping[str, Any], stored: Mapping[str, Stored], *, source: str, where: str, looked_for: str
) -> ModelFacts:
    """The family's rule, proved by the header where there is one; a family without a rule as its header stands."""
    notes: tuple[Finding, ...] = tuple(_quantised(values, where))
    family = family_of(values["model_type"])
    if family is None and not stored:
        raise unknown_family(values["model_type"], where, looked_for)
    if family is None:
        layout, found = layout_as_stored(values, stored, where)
    else:
        layout, found = layout_of(family, values, where), ()
        if stored:
            layout, found = seen_on_disk(layout, stored, source)
    facts = facts_of(layout, source)
    dtypes = [m.stored for m in facts.decoder if m.stored]
    return facts.replace(
        exact=bool(stored),
        dtype=max(set(dtypes), key=dtypes.count) if dtypes else facts.dtype,
        notes=(*notes, *found),
    )


def _quantised(values: Mapping[str, Any], where: str) -> list[Finding]:
    method = quantised_with(values)
    if method is None:
        return []
    return [
        Finding(
            code="facts-quantised",
            level="warning",
            path=where,
            message=f"its weights are quantised with {method}, which `lorawise train` does not open; shapes and "
            "memory are those of the model they stand for",
            cure="train from the model's unquantised repository",
        )
    ]


def _is_complete(folder: Path) -> bool:
    try:
        return bool(tensor_headers(folder))
    except (ModelError, TensorFileError):
        return False
