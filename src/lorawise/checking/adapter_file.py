"""An adapter folder as it lies there, also when no loader would take it: fields, keys, and small facts of its tensors.

    adapter_config.json ─▶ fields        adapter_model.safetensors ─▶ layers: module → A (r, in), B (out, r)

Norms and singular values come from the r × r core (‖BA‖ and its spectrum from the QR factors of B and Aᵀ): no base
model and no dense product. Tensors are read one layer at a time, up to `MAX_BYTES` in all; a .bin file is never
unpickled.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ConfigError, TensorFileError
from lorawise.base.patterns import full_match
from lorawise.base.safetensors import SafetensorsFile, TensorHeader
from lorawise.checking.files import Unreadable, read_text
from lorawise.store.expert_layout import Places, places_of
from lorawise.store.peft_keys import PREFIX

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
MAX_BYTES = 2 * 2**30  # of tensors that are looked into
LARGEST = 1e30  # of a config's numbers: no rank or alpha comes near, and its square is still a float
ENERGY = 0.99  # of ‖ΔW‖² that the effective rank holds

_HALF = re.compile(r"(?P<module>[^\s]{1,400})\.lora_(?P<half>[AB])(?P<name>\.[\w-]+)?\.weight")
_EMBEDDING = re.compile(r"(?P<module>[^\s]{1,400})\.lora_embedding_(?P<half>[AB])(?P<name>\.[\w-]+)?")


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One module: `norm` is ‖scaling · B·A‖ (Frobenius), `rank` of its tensors; `needed` directions hold 99 %."""

    module: str
    rank: int
    width: int
    norm: float
    needed: int
    finite: bool
    b_zero: bool


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """`keys` are the tensors' names; `base` a folder with the base's weights, where the caller gave one."""

    path: str
    folder: Path
    fields: Mapping[str, Any]
    file: SafetensorsFile | None
    lines: Mapping[str, int] = field(default_factory=dict)
    base: Path | None = None

    @property
    def keys(self) -> Mapping[str, TensorHeader]:
        return {} if self.file is None else self.file.tensors

    @cached_property
    def halves(self) -> dict[str, dict[str, str]]:
        """module (without PEFT's prefix) → {"A": key, "B": key}."""
        found: dict[str, dict[str, str]] = {}
        for key in self.keys:
            match = _HALF.fullmatch(key) or _EMBEDDING.fullmatch(key)
            if match:
                module = match["module"].removeprefix(PREFIX)
                found.setdefault(module, {})[match["half"]] = key
        return found

    @cached_property
    def others(self) -> list[str]:
        """Keys that are no half of a LoRA pair."""
        paired = {key for halves in self.halves.values() for key in halves.values()}
        return [key for key in self.keys if key not in paired]

    def number(self, name: str) -> float | None:
        """A field's finite number: JSON as Python writes it may say NaN and Infinity, which are none."""
        return _number(self.fields.get(name))

    def scaling(self, module: str) -> float:
        """PEFT's: alpha_pattern and rank_pattern by the first key that matches, then alpha / r (or √r)."""
        rank = _of_pattern(self.fields.get("rank_pattern"), module) or self.number("r") or 1.0
        own = _of_pattern(self.fields.get("alpha_pattern"), module)
        alpha = own if own is not None else self.number("lora_alpha") or 0.0
        return alpha / (math.sqrt(abs(rank)) if self.fields.get("use_rslora") is True else rank)

    @cached_property
    def layers(self) -> tuple[LayerFacts, ...]:
        """Facts of every whole pair, in the order of the file, as far as `MAX_BYTES` reach."""
        facts: list[LayerFacts] = []
        spent = 0
        for module, halves in self.halves.items():
            if self.file is None or set(halves) != {"A", "B"}:
                continue
            spent += sum(self.keys[key].end - self.keys[key].start for key in halves.values())
            if spent > MAX_BYTES:
                break
            try:
                a, b = self.file.read(halves["A"]), self.file.read(halves["B"])
            except (TensorFileError, OSError):
                continue
            if a.ndim == 2 and b.ndim == 2 and a.shape[0] == b.shape[1]:
                facts.append(self._facts_of(module, a, b))
        return tuple(facts)

    def _facts_of(self, module: str, a: NDArray[Any], b: NDArray[Any]) -> LayerFacts:
        """Of fused experts, by their parameter's name, those of all together: a rank is every expert's."""
        place = self._places.names.get(module, module)
        rank = int(_of_pattern(self.fields.get("rank_pattern"), place) or self.number("r") or 1)
        if place not in self._places.experts or rank < 1 or len(a) % rank:
            return _facts(module, a, b, self.scaling(module))
        count, scaling = len(a) // rank, self.scaling(place)
        pairs = zip(a.reshape(count, rank, -1), b.reshape(-1, rank, count).transpose(2, 0, 1), strict=True)
        each = [_facts(place, one, other, scaling) for one, other in pairs]
        return LayerFacts(
            module=place,
            rank=rank,
            width=each[0].width,
            norm=math.hypot(*(expert.norm for expert in each)),
            needed=max(expert.needed for expert in each),
            finite=all(expert.finite for expert in each),
            b_zero=all(expert.b_zero for expert in each),
        )

    @cached_property
    def _places(self) -> Places:
        """Which of the modules are parameters of fused experts by the config, as far as it is well formed."""
        wanted = self.fields.get("target_parameters")
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            return Places(names={}, experts=frozenset())
        return places_of(list(self.halves), self.fields)

    def update(self, module: str) -> NDArray[np.float32] | None:
        """scaling · B·A of one module, dense: only for comparing with the base's weight."""
        halves = self.halves.get(module, {})
        if self.file is None or set(halves) != {"A", "B"}:
            return None
        a, b = self.file.read(halves["A"]).astype(np.float32), self.file.read(halves["B"]).astype(np.float32)
        return (b @ a) * np.float32(self.scaling(module)) if a.shape[0] == b.shape[1] else None


def _facts(module: str, a: NDArray[Any], b: NDArray[Any], scaling: float) -> LayerFacts:
    """Tensors whose product float32 cannot hold count as not finite: so will every answer be."""
    rank, width = a.shape[0], min(a.shape[1], b.shape[0])
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    norm, needed = 0.0, 0
    if finite and b.any() and rank <= 4096:
        with np.errstate(over="ignore", invalid="ignore"):
            core = _triangle(b.astype(np.float32)) @ _triangle(a.astype(np.float32).T).T
        finite = bool(np.isfinite(core).all())
        energy = np.linalg.svd(np.where(np.isfinite(core), core, 0), compute_uv=False).astype(np.float64) ** 2
        norm = scaling * math.sqrt(float(energy.sum()))
        needed = int(np.searchsorted(np.cumsum(energy), ENERGY * energy.sum()) + 1)
    return LayerFacts(
        module=module,
        rank=rank,
        width=width,
        norm=norm,
        needed=min(needed, rank),
        finite=finite,
        b_zero=not b.any(),
    )


def _triangle(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """R of the QR of a tall matrix."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _of_pattern(pattern: object, module: str) -> float | None:
    if not isinstance(pattern, dict):
        return None
    for expression, value in pattern.items():
        try:
            if full_match(rf"(.*\.)?({expression})", module) and (number := _number(value)) is not None:
                return number
        except ConfigError:
            continue
    return None


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > LARGEST:
        return None
    return float(value) if math.isfinite(value) else None


def config_fields(text: str) -> dict[str, Any]:
    """What adapter_config.json says. Raises `Unreadable` for what is no JSON object."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("LW002", "not JSON", "copy it again from where the adapter was trained") from None
    if not isinstance(fields, dict):
        raise Unreadable("LW002", "not a JSON object", "copy it again from where the adapter was trained")
    if str(fields.get("peft_type") or "LORA").upper() != "LORA":
        raise Unreadable("LW003", f"is a PEFT adapter of type {fields['peft_type']}, not LoRA")
    return fields


def read_adapter_folder(folder: Path, path: str, base: Path | None = None) -> AdapterFile:
    """Raises `Unreadable` for a config that is no JSON object; a missing or torn tensor file is a finding of a rule."""
    text = read_text(folder / CONFIG_NAME)
    fields = config_fields(text)
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*"(\w{1,60})"\s*:', line)
        if match:
            lines.setdefault(match[1], number)
    file = None
    if (folder / TENSORS_NAME).is_file():
        try:
            file = SafetensorsFile.open(folder / TENSORS_NAME)
        except (TensorFileError, OSError) as problem:
            found = problem.found if isinstance(problem, TensorFileError) else str(problem)
            raise Unreadable("LW001", found, "copy or fetch the file again") from None
    return AdapterFile(path=path, folder=folder, fields=fields, file=file, lines=lines, base=base)
